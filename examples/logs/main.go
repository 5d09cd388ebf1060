// Logs launches itself as a plugin and shows what the plugin prints as records of
// the host's slog: its own records with their levels and fields, everything else
// as text.
//
//	go run ./examples/logs
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/exec"

	"github.com/plugwire/plugwire"
)

func main() {
	log.SetFlags(0)
	err := plugin()
	if errors.Is(err, plugwire.ErrNotPlugin) { // nobody launched this process: it is the host
		err = host()
	}
	if err != nil {
		log.Fatal(err)
	}
}

// plugin is the plugin's main function. Its logger knows nothing of a host.
func plugin() error {
	logger := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	mux := plugwire.NewMux()
	mux.HandleFunc("fetch", func(_ context.Context, url []byte) ([]byte, error) {
		logger.Debug("fetching", "url", string(url))
		logger.Warn("slow", slog.Group("took", "dns", "1.2s", "all", "3.4s"))
		fmt.Println("left from debugging: \x1b[31mhere\x1b[0m") // harmless: stdout is stderr by now
		return []byte("page"), nil
	})
	return plugwire.ServePlugin(mux, nil)
}

func host() error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	cfg := &plugwire.Config{Logger: slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr { // what differs each time
			if a.Key == slog.TimeKey || a.Key == "pid" || a.Key == "plugin" {
				return slog.Attr{}
			}
			return a
		},
	}))}
	ctx := context.Background()
	p, err := plugwire.Launch(ctx, exec.Command(program), cfg)
	if err != nil {
		return err
	}
	defer p.Close()
	if _, err := p.Call(ctx, "fetch", []byte("http://localhost/")); err != nil {
		return err
	}
	return p.Close()
}
