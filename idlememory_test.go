package plugwire

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"
)

// A message that was written from where it is has been forgotten by then.
func TestIdleConnectionsDoNotHoldTheCallersMemory(t *testing.T) {
	m := NewMux()
	var handled atomic.Int64
	m.Handle("note", HandlerFunc(func(r *Request, b []byte) ([]byte, error) { handled.Add(1); return b, nil }))
	x, _ := pair(t, "unix", nil, &Config{Mux: m})
	until(t, "methods", func() bool { return len(x.Methods()) > 0 })
	var freed atomic.Bool
	func() {
		big := make([]byte, 1<<20) // of which a part is sent
		runtime.AddCleanup(&big[0], func(*int) { freed.Store(true) }, nil)
		for n := range int64(3) {
			if err := x.Notify(context.Background(), "note", big[1<<10:][:32<<10]); err != nil {
				t.Fatal(err)
			}
			until(t, "its handler", func() bool { return handled.Load() == n+1 })
		}
	}()
	until(t, "the caller's memory to be free", func() bool { runtime.GC(); return freed.Load() })
}

// Nor what the last large one-way message was put together in.
func TestIdleConnectionsHoldNoLargeMessages(t *testing.T) {
	const conns = 10
	m := NewMux()
	m.Handle("note", HandlerFunc(func(r *Request, b []byte) ([]byte, error) { return b, nil }))
	var xs []*Conn
	for range conns {
		x, _ := pair(t, "unix", nil, &Config{Mux: m})
		xs = append(xs, x)
	}
	before := heap()
	msg := make([]byte, 1<<20-1)
	for _, x := range xs {
		if err := x.Notify(context.Background(), "note", msg); err != nil {
			t.Fatal(err)
		}
		if err := x.Flush(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "an idle connection to hold no more than 128 KiB", func() bool { return heap() < before+conns*128<<10 })
	runtime.KeepAlive(msg)
	runtime.KeepAlive(xs)
}
