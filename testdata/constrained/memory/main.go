// Memory launches itself as a plugin, has it serve calls, and prints the most
// memory that the plugin has had (VmHWM of Linux). The first argument says which
// calls, "small" in the environment variable SETTINGS to take little.
package main

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/plugwire/plugwire"
)

func config() *plugwire.Config {
	if os.Getenv("SETTINGS") != "small" {
		return &plugwire.Config{}
	}
	return &plugwire.Config{Limits: plugwire.Limits{
		MaxConns:        4,
		MaxHandshakes:   2,
		MaxCalls:        64,
		MaxFrame:        4 << 10,
		MaxMessage:      256 << 10,
		MaxRequestBytes: 512 << 10,
		MaxServerBytes:  1 << 20,
		OneWayWindow:    64 << 10,
		StreamWindow:    64 << 10,
	}}
}

func plugin() {
	mux := plugwire.NewMux()
	mux.HandleFunc("count", func(ctx context.Context, b []byte) ([]byte, error) {
		if len(b) > 100_000 { // large ones take time, and are there all that while
			time.Sleep(20 * time.Millisecond)
		}
		return fmt.Append(nil, len(b)), nil
	})
	mux.HandleFunc("peak", func(ctx context.Context, _ []byte) ([]byte, error) {
		status, err := os.ReadFile("/proc/self/status")
		_, after, _ := bytes.Cut(status, []byte("VmHWM:"))
		line, _, _ := bytes.Cut(after, []byte("\n"))
		return bytes.TrimSpace(line), err
	})
	if err := plugwire.ServePlugin(mux, config()); err != nil {
		log.Fatal(err)
	}
}

func main() {
	if len(os.Args) == 1 {
		plugin()
		return
	}
	ctx := context.Background()
	p, err := plugwire.Launch(ctx, exec.Command(os.Args[0]), config())
	if err != nil {
		log.Fatal(err)
	}
	defer p.Close()
	callers, calls, size := 0, 0, 0
	if _, err := fmt.Sscan(strings.Join(os.Args[1:], " "), &callers, &calls, &size); err != nil {
		log.Fatal("usage: memory CALLERS CALLS BYTES: ", err)
	}
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range calls {
				if _, err := p.Call(ctx, "count", make([]byte, size)); err != nil {
					log.Fatal(err)
				}
			}
		})
	}
	wg.Wait()
	peak, err := p.Call(ctx, "peak", nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", peak)
}
