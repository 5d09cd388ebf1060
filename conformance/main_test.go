// Package conformance holds streams against code that knows nothing of them:
// what runs over a net.Conn must run over a stream.
package conformance

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plugwire/plugwire"
)

// testTimeout bounds every test.
const testTimeout = 60 * time.Second

// overTransports runs body over each transport. It panics, with all stacks,
// when the body hangs, and fails the test when it leaves goroutines behind.
func overTransports(t *testing.T, body func(t *testing.T, transport string)) {
	for _, transport := range []string{"unix", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			if transport == "unix" && runtime.GOOS == "windows" {
				t.Skip("no Unix sockets here yet")
			}
			watchdog := time.AfterFunc(testTimeout, func() {
				fmt.Fprintf(os.Stderr, "%s hangs:\n\n%s\n", t.Name(), stacks())
				panic(t.Name() + " hangs")
			})
			before := goroutines()
			t.Cleanup(func() { // the last of all
				defer watchdog.Stop()
				if !inTime(func() bool { return goroutines() <= before }) {
					t.Errorf("%d goroutines before the test, %d after:\n\n%s", before, goroutines(), stacks())
				}
			})
			body(t, transport)
		})
	}
}

// inTime waits until cond holds, and reports whether it came to hold.
func inTime(cond func() bool) bool {
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

func stacks() string {
	buf := make([]byte, 4<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

// goroutines counts them, but for the process-wide monitor: that goes away some
// time after the last connection has become quiet.
func goroutines() int {
	n := 0
	for g := range strings.SplitSeq(stacks(), "\n\n") {
		if !strings.Contains(g, "plugwire.runMonitor") {
			n++
		}
	}
	return n
}

// connect connects two ends, of which the other serves mux, and returns the one
// that is to open the streams. Which of them has dialled is decided at random,
// and printed when the test fails.
func connect(t *testing.T, transport string, mux *plugwire.Mux) (opener *plugwire.Conn, stop func(), err error) {
	accepted := make(chan *plugwire.Conn, 1)
	server := &plugwire.Server{Config: &plugwire.Config{OnConn: func(c *plugwire.Conn) { accepted <- c }}}
	var dialler plugwire.Config
	swap := rand.IntN(2) == 1
	if swap {
		dialler.Mux = mux
	} else {
		server.Mux = mux
	}
	l, err := server.Listen(transport + ":")
	if err != nil {
		return nil, nil, err
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	dialled, err := plugwire.Dial(context.Background(), transport+"://"+l.Addr().String(), &dialler)
	if err != nil {
		server.Close()
		<-served
		return nil, nil, err
	}
	opener = dialled
	if other := <-accepted; swap {
		opener = other
	}
	return opener, func() {
		dialled.Close()
		server.Close()
		<-served
		if t.Failed() {
			t.Logf("the opener of the streams dialled: %v", !swap)
		}
	}, nil
}

// A tunnel listens for streams: what it accepts are their net.Conns.
type tunnel struct {
	conns    chan net.Conn
	closed   chan struct{}
	close    sync.Once
	opener   *plugwire.Conn
	accepted atomic.Int64
	open     atomic.Int64 // handlers that have not returned
}

// newTunnel returns a tunnel over a connection of its own. In the end it must
// have no open streams any more, while the connection still stands.
func newTunnel(t *testing.T, transport string) *tunnel {
	t.Helper()
	l := &tunnel{conns: make(chan net.Conn), closed: make(chan struct{})}
	mux := plugwire.NewMux()
	mux.HandleStream("tunnel", l.serve)
	opener, stop, err := connect(t, transport, mux)
	if err != nil {
		t.Fatal(err)
	}
	l.opener = opener
	t.Cleanup(func() {
		l.Close()
		if !inTime(func() bool { return l.open.Load() == 0 }) {
			t.Errorf("%d of %d streams are still open:\n\n%s", l.open.Load(), l.accepted.Load(), stacks())
		}
		if _, err := opener.Ping(t.Context()); err != nil && t.Context().Err() == nil {
			t.Errorf("the connection has ended: %v", err)
		}
		if err := opener.Err(); err != nil {
			t.Errorf("the connection has ended: %v", err)
		}
		stop()
	})
	return l
}

func (l *tunnel) serve(s *plugwire.Stream) error {
	l.open.Add(1)
	defer l.open.Add(-1)
	select {
	case l.conns <- s.NetConn():
		l.accepted.Add(1)
	case <-l.closed:
		return &plugwire.Error{Code: plugwire.Unavailable, Message: "nobody listens"}
	}
	<-s.Context().Done() // Close ends it, and so does the other side
	return nil
}

// dial opens a stream. The ctx of a dialler ends with the dialling, and so must
// not be the stream's.
func (l *tunnel) dial(ctx context.Context) (net.Conn, error) {
	s, err := l.opener.OpenStream(context.WithoutCancel(ctx), "tunnel")
	if err != nil {
		return nil, err
	}
	return s.NetConn(), nil
}

func (l *tunnel) Accept() (net.Conn, error) {
	select {
	case nc := <-l.conns:
		return nc, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *tunnel) Close() error {
	l.close.Do(func() { close(l.closed) })
	return nil
}

func (l *tunnel) Addr() net.Addr { return l.opener.RemoteAddr() }
