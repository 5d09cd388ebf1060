package plugwire

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Reading and writing do not tell Go's scheduler of their system calls, where they
// need not (see internal/sockio). It must be awake all the same when a handler
// computes: there is one processor, and it has to be taken away from the handler for
// others to be served.

const oneProcessorChild = "one processor"

func init() { children[oneProcessorChild] = runOneProcessor }

// computeTime is how long a handler computes that nobody stops.
const computeTime = 5 * time.Second

func runOneProcessor() {
	var stop atomic.Bool
	compute := func() []byte {
		for start := time.Now(); !stop.Load(); {
			if time.Since(start) > computeTime {
				return []byte("alone")
			}
		}
		return []byte("stopped")
	}
	m := NewMux()
	m.Handle("note", HandlerFunc(func(_ *Request, reply []byte) ([]byte, error) { return reply, nil }))
	m.Handle("stop", HandlerFunc(func(_ *Request, reply []byte) ([]byte, error) { stop.Store(true); return reply, nil }))
	m.Handle("again", HandlerFunc(func(_ *Request, reply []byte) ([]byte, error) { stop.Store(false); return reply, nil }))
	m.Handle("compute", HandlerFunc(func(_ *Request, reply []byte) ([]byte, error) { return append(reply, compute()...), nil }))
	// By a goroutine that the reply wakes, and by one that sends.
	m.Handle("call and compute", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		if _, err := r.Conn().Call(background, "echo", nil); err != nil {
			return reply, err
		}
		return append(reply, compute()...), nil
	}))
	m.Handle("send and compute", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		for range 40 { // waits meanwhile
			if err := r.Conn().Notify(background, "note", make([]byte, 64<<10)); err != nil {
				return reply, err
			}
		}
		return append(reply, compute()...), nil
	}))
	s := &Server{Mux: m}
	l, err := s.Listen(localTransport + ":")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go s.Serve(l)
	fmt.Println(addrURI(l.Addr()))
	io.Copy(io.Discard, os.Stdin)
	s.Close()
}

func TestWhatComputesOnOneProcessorStopsNoOther(t *testing.T) {
	t.Parallel()
	cmd := childCommand(oneProcessorChild, "GOMAXPROCS=1")
	in, out := startChild(t, cmd)
	defer cmd.Wait()
	defer in.Close()
	addr, err := out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	addr = strings.TrimSpace(addr)
	dial := func() *Conn {
		m := echoMux(nil)
		m.Handle("note", HandlerFunc(func(_ *Request, reply []byte) ([]byte, error) { return reply, nil }))
		x, err := Dial(background, addr, serves(m))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { x.Close() })
		return x
	}
	x, y := dial(), dial()
	for _, method := range []string{"compute", "call and compute", "send and compute"} {
		for _, idle := range []time.Duration{0, 2 * time.Millisecond, 20 * time.Millisecond, 300 * time.Millisecond} {
			for range 20 { // much goes through the connection
				if err := x.Notify(background, "note", make([]byte, 64<<10)); err != nil {
					t.Fatal(err)
				}
			}
			if err := x.Flush(background); err != nil {
				t.Fatal(err)
			}
			time.Sleep(idle) // the scheduler's monitor may fall asleep, and the flow's timer be gone
			computed := make(chan string, 1)
			go func() {
				b, err := x.Call(background, method, nil)
				computed <- fmt.Sprint(string(b), err)
			}()
			time.Sleep(time.Millisecond) // it computes, or does soon
			for range 3 {                // small messages, that wake one who waits
				if _, err := y.Call(background, "stop", nil); err != nil {
					t.Fatal(err)
				}
			}
			if got := <-computed; got != "stopped<nil>" {
				t.Errorf("%s, %v after much has gone through: %s", method, idle, got)
			}
			if _, err := y.Call(background, "again", nil); err != nil {
				t.Fatal(err)
			}
		}
	}
}
