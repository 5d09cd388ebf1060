// Plugwire helps to find out why a plugin does not work.
//
//	go run github.com/plugwire/plugwire/cmd/plugwire doctor [flags] [PLUGIN [args]]
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/plugwire/plugwire"
)

// The exit statuses.
const (
	exitWell   = 0
	exitBroken = 1
	exitUsage  = 2
)

const usage = `usage: plugwire doctor [flags] [PLUGIN [args]]

doctor starts PLUGIN as a host does, and says how each step went. The flags
stand for the settings of that host. Without PLUGIN it tries the transports that
this machine offers. It exits with status 0 when all is well, 1 when something
is broken, and 2 when it was called wrongly.

`

// asPlugin is the argument with which doctor launches this program.
const asPlugin = "as-plugin"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// run is main without what belongs to the process.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) (status int) {
	if len(args) == 1 && args[0] == asPlugin {
		if err := plugwire.ServePlugin(plugwire.NewMux(), nil); err != nil {
			fmt.Fprintln(stderr, err)
			return exitBroken
		}
		return exitWell
	}
	if len(args) == 0 || args[0] != "doctor" {
		fmt.Fprint(stderr, usage)
		return exitUsage
	}
	return doctor(ctx, args[1:], stdout, stderr)
}
