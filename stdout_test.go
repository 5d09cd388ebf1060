//go:build unix

package plugwire

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// earlyLogger is one that somebody made before main ran.
var earlyLogger = log.New(os.Stdout, "early: ", 0)

func init() {
	behaviours["strays"] = func() {
		mux := testPluginMux()
		mux.HandleFunc("stray", func(context.Context, []byte) ([]byte, error) {
			fmt.Println("a stray Println")
			earlyLogger.Print("a stray record")
			_, err := syscall.Write(1, []byte("a stray printf of C\n")) // which knows only the descriptor
			return nil, err
		})
		must(ServePlugin(mux, nil))
	}
}

// TestStrayPrintsGoToStderr: and the host, whose pipe for stdout ends, goes on.
func TestStrayPrintsGoToStderr(t *testing.T) {
	var book logBook
	lt := newLaunchTest(t, "strays")
	lt.cfg.Logger = book.logger("time", "plugin", "pid")
	var stderr strings.Builder
	lt.cmd.Stderr = &stderr
	p := lt.launch()
	for range 2 {
		if _, err := p.Call(t.Context(), "stray", nil); err != nil {
			t.Fatal(err)
		}
		lt.greets(p)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	want := strings.Repeat("a stray Println\nearly: a stray record\na stray printf of C\n", 2)
	if stderr.String() != want {
		t.Errorf("stderr got %q", stderr.String())
	}
	if n := len(book.lines()); n != strings.Count(want, "\n") {
		t.Errorf("%d records: %q", n, book.lines())
	}
}

// TestStdoutOfAPluginEnds: its host has nothing to read there once the launch line was printed.
func TestStdoutOfAPluginEnds(t *testing.T) {
	lt := newLaunchTest(t, "good")
	stdin, stdout := lt.startByHand((&launchOrder{cookie: defaultMagicCookie, transports: []string{"tcp"}, stdin: true}).String())
	output := make(chan string, 1)
	go func() {
		all, err := io.ReadAll(stdout)
		output <- fmt.Sprint(string(all), err)
	}()
	select {
	case all := <-output:
		if strings.Count(all, "\n") != 1 || !strings.HasSuffix(all, "\n<nil>") || !lt.alive() {
			t.Errorf("%q, and alive: %v", all, lt.alive())
		}
	case <-time.After(10 * time.Second):
		t.Error("stdout is still open")
	}
	stdin.Close()
	lt.cmd.Wait()
}
