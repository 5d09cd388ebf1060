// Greeter builds a plugin, launches it as a process of its own, calls it, and
// measures how fast that is.
//
//	go run ./examples/greeter
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"

	"github.com/plugwire/plugwire"
)

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	program, cleanUp, err := build()
	if err != nil {
		return err
	}
	defer cleanUp()

	p, err := plugwire.Launch(ctx, exec.Command(program), nil)
	if err != nil {
		return err
	}
	defer p.Close()
	reply, err := p.Call(ctx, "greet", []byte("world"))
	if err != nil {
		return err
	}

	fmt.Printf("the plugin, process %d, says: %s\n\n", p.Pid(), reply)
	fmt.Printf("transport: %s\n%s\n", p.Selection().Chosen, p.Selection())
	if err := measure(ctx, p); err != nil {
		return err
	}
	return p.Close()
}

// build compiles the plugin into a temporary directory that cleanUp removes. A
// real host finds its plugins ready built.
func build() (program string, cleanUp func(), err error) {
	dir, err := os.MkdirTemp("", "greeter-")
	if err != nil {
		return "", nil, err
	}
	cleanUp = func() { os.RemoveAll(dir) }
	program = filepath.Join(dir, "greeter.exe") // Windows insists on .exe, and nobody else minds
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", program,
		"github.com/plugwire/plugwire/examples/greeter/plugin")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		cleanUp()
		return "", nil, fmt.Errorf("building the plugin: %w", err)
	}
	return program, cleanUp, nil
}
