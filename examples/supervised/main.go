// Supervised keeps a worker process running: it is restarted when it is killed,
// and swapped for a new version while calls go on.
//
//	go run ./examples/supervised
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"

	"github.com/plugwire/plugwire"
)

func main() {
	log.SetFlags(0)
	err := worker() // when a host has launched this program
	if errors.Is(err, plugwire.ErrNotPlugin) {
		err = host(context.Background())
	}
	if err != nil {
		log.Fatal(err)
	}
}

// worker serves "version" to the host.
func worker() error {
	mux := plugwire.NewMux()
	mux.HandleFunc("version", func(context.Context, []byte) ([]byte, error) {
		return []byte(os.Getenv("WORKER_VERSION")), nil
	})
	return plugwire.ServePlugin(mux, nil)
}

// host launches the worker, which is this same program, kills it, and swaps it.
func host(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	version := func(v string) *exec.Cmd {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), "WORKER_VERSION="+v)
		return cmd
	}
	cfg := new(plugwire.Config)
	cfg.Launch.Restart = plugwire.RestartOnFailure
	cfg.Launch.OnEvent = func(e plugwire.Event) { fmt.Println("    event:", e.Kind) }

	p, err := plugwire.Launch(ctx, version("1"), cfg)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := show(ctx, p); err != nil {
		return err
	}

	process, err := os.FindProcess(p.Pid())
	if err != nil {
		return err
	}
	process.Kill()
	<-p.Conn().Done()
	if err := show(ctx, p); err != nil { // waits for the next process
		return err
	}

	if err := p.Swap(ctx, version("2")); err != nil {
		return err
	}
	if err := show(ctx, p); err != nil {
		return err
	}
	return p.Close()
}

func show(ctx context.Context, p *plugwire.Plugin) error {
	v, err := p.Call(ctx, "version", nil)
	if err == nil {
		fmt.Printf("version %s answers\n", v)
	}
	return err
}
