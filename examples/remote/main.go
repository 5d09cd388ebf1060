// Remote launches a plugin behind a command that runs it somewhere else, over that
// command's stdin and stdout: nothing listens anywhere.
//
//	go run ./examples/remote
//
// stands in for the other place with a shell that has none of this process's
// environment and greets first, as a login does. With this program copied to
// another machine,
//
//	go run ./examples/remote ssh HOST /path/of/remote
//	go run ./examples/remote docker exec -i CONTAINER /path/of/remote
//
// do the same with a real one.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"runtime"

	"github.com/plugwire/plugwire"
)

func main() {
	log.SetFlags(0)
	err := plugin() // when a host has launched this program
	if errors.Is(err, plugwire.ErrNotPlugin) {
		var where string
		if where, err = host(context.Background(), os.Args[1:]); err == nil {
			fmt.Println("the plugin runs on", where)
		}
	}
	if err != nil {
		log.Fatal(err)
	}
}

// plugin serves the host, whichever way that has come.
func plugin() error {
	mux := plugwire.NewMux()
	mux.HandleFunc("whereami", func(context.Context, []byte) ([]byte, error) {
		name, err := os.Hostname()
		return fmt.Appendf(nil, "%s, %s/%s, with %d environment variables", name, runtime.GOOS, runtime.GOARCH, len(os.Environ())), err
	})
	return plugwire.ServePlugin(mux, nil)
}

// host launches the command, or a stand-in for one, and asks the plugin where it is.
func host(ctx context.Context, command []string) (string, error) {
	if len(command) == 0 {
		self, err := os.Executable()
		if err != nil {
			return "", err
		}
		command = []string{"sh", "-c", `echo "Welcome."; exec env -i "$0"`, self}
	}
	cmd := exec.Command(command[0], command[1:]...)
	p, err := plugwire.Launch(ctx, cmd, &plugwire.Config{Transports: []string{"stdio"}})
	if err != nil {
		return "", err
	}
	where, err := p.Call(ctx, "whereami", nil)
	return string(where), errors.Join(err, p.Close())
}
