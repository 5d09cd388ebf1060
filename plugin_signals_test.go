//go:build unix

package plugwire

import (
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func init() {
	behaviours["says signals"] = func() {
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGUSR1, syscall.SIGINT)
		go func() {
			for s := range c {
				fmt.Fprintf(os.Stderr, "got %v\n", s)
			}
		}()
		must(ServePlugin(testPluginMux(), nil))
	}
}

func TestSignalsReachThePluginOnlyWhenAskedTo(t *testing.T) {
	here := make(chan os.Signal, 10) // without it the first would end the test
	signal.Notify(here, syscall.SIGUSR1)
	defer signal.Stop(here)
	for _, forward := range [][]os.Signal{nil, {syscall.SIGUSR1}} {
		lt := newLaunchTest(t, "says signals")
		lt.cfg.Launch.ForwardSignals = forward
		got := make(chan struct{}, 1)
		lt.cmd.Stderr = writerFunc(func(p []byte) (int, error) {
			if bytes.Contains(p, []byte("got user")) {
				got <- struct{}{}
			}
			return len(p), nil
		})
		p := lt.launch()
		// As a terminal does it: to everybody in this process's group.
		own, _ := unix.Getpgid(0)
		if g, err := unix.Getpgid(p.Pid()); err != nil || g == own {
			t.Errorf("the plugin is in the group %d, %v, and so is this process", g, err)
		}
		syscall.Kill(os.Getpid(), syscall.SIGUSR1)
		receive(t, "the signal here", here)
		if forward != nil {
			receive(t, "the signal at the plugin", got)
		}
		lt.greets(p)
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if s := string(p.cur.Load().proc.stderr.tail); forward == nil && strings.Contains(s, "got") {
			t.Errorf("without asking, the plugin %s", s)
		}
	}
}
