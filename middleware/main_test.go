package middleware

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/plugwire/plugwire"
)

// TestMain fails when goroutines of this module are left in the end.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if leak := leaks(); leak != "" {
			fmt.Fprintln(os.Stderr, "leaked goroutines:\n\n"+leak)
			code = 1
		}
	}
	os.Exit(code)
}

// leaks gives goroutines some time to end and returns the stacks of those that do not.
func leaks() (report string) {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		report = ""
		for g := range strings.SplitSeq(string(buf), "\n\n") {
			if strings.Contains(g, "plugwire/plugwire") && !strings.Contains(g, "TestMain") {
				report += g + "\n\n"
			}
		}
		if report == "" || time.Now().After(deadline) {
			return report
		}
	}
}

// overTransports runs the same body with an address of each transport.
func overTransports(t *testing.T, body func(t *testing.T, addr string)) {
	for _, transport := range plugwire.Transports() {
		t.Run(transport, func(t *testing.T) {
			timer := time.AfterFunc(45*time.Second, func() {
				buf := make([]byte, 4<<20)
				fmt.Fprintf(os.Stderr, "%s hangs:\n\n%s\n", t.Name(), buf[:runtime.Stack(buf, true)])
				panic(t.Name() + " hangs")
			})
			t.Cleanup(func() { timer.Stop() })
			body(t, transport+":")
		})
	}
}

// serve has a server serve mux on addr, and returns a function that connects to
// it. Everything is closed in the end.
func serve(t *testing.T, addr string, mux *plugwire.Mux, cfg *plugwire.Config) (connect func() *plugwire.Conn) {
	t.Helper()
	server := &plugwire.Server{Mux: mux, Config: cfg}
	l, err := server.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		if err := <-ended; !errors.Is(err, plugwire.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	uri := l.Addr().Network() + "://" + l.Addr().String()
	return func() *plugwire.Conn {
		t.Helper()
		c, err := plugwire.Dial(context.Background(), uri, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(); <-c.Done() })
		return c
	}
}

// wantError fails the test unless err has the code and says so of NotRun.
func wantError(t *testing.T, err error, code plugwire.Code, notRun bool) {
	t.Helper()
	if err == nil || plugwire.CodeOf(err) != code || plugwire.NotRun(err) != notRun {
		t.Errorf("error %v (NotRun %v), want code %v, NotRun %v", err, plugwire.NotRun(err), code, notRun)
	}
}

// receive waits for a channel.
func receive[T any](t *testing.T, what string, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(20 * time.Second):
		t.Fatalf("not in time: %s", what)
	}
	return v
}

// until waits until cond holds.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(200 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// noAllocations fails the test when f allocates.
func noAllocations(t *testing.T, what string, f func()) {
	t.Helper()
	if n := testing.AllocsPerRun(1000, f); n != 0 {
		t.Errorf("%s: %v allocations each time", what, n)
	}
}

// empty is a handler that does nothing, also with a zero Request.
var empty = plugwire.HandlerFunc(func(_ *plugwire.Request, reply []byte) ([]byte, error) { return reply, nil })
