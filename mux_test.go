package plugwire

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// layer is middleware that puts its name into the reply, around what is inside.
func layer(name string) func(Handler) Handler {
	return func(next Handler) Handler {
		return HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			reply, err := next.ServeCall(r, append(append(reply, name...), '('))
			return append(reply, ')'), err
		})
	}
}

// wantReplies fails the test unless each method's reply is the given one.
func wantReplies(t *testing.T, c *Conn, want map[string]string) {
	t.Helper()
	for method, reply := range want {
		if got, err := c.Call(background, method, nil); string(got) != reply || err != nil {
			t.Errorf("%s: %q, %v, want %q", method, got, err, reply)
		}
	}
}

func TestUseWrapsAllHandlersInOrder(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		named := HandlerFunc(func(r *Request, reply []byte) ([]byte, error) { return append(reply, r.Method()...), nil })
		m := NewMux()
		m.Handle("before", named)
		x, y := pair(t, transport, nil, serves(m)) // learns of none of the changes but the methods
		wantReplies(t, x, map[string]string{"before": "before"})
		m.Use()
		m.Use(layer("a"), layer("b"))
		wantReplies(t, x, map[string]string{"before": "a(b(before))"})
		m.Handle("after", named)
		m.Fallback(named)
		until(t, "the fallback", func() bool { _, err := x.Call(background, "other", nil); return err == nil })
		wantReplies(t, x, map[string]string{"before": "a(b(before))", "after": "a(b(after))", "other": "a(b(other))"})
		m.Use(layer("c"))
		wantReplies(t, x, map[string]string{"before": "a(b(c(before)))", "after": "a(b(c(after)))", "other": "a(b(c(other)))"})
		m.Fallback(nil)
		m.Use(layer("d"))
		if _, err := x.Call(background, "other", nil); CodeOf(err) != Unimplemented || !NotRun(err) {
			t.Errorf("without a fallback: %v, NotRun %v", err, NotRun(err))
		}
		if got := m.Methods(); !slices.Equal(got, []string{"before", "after"}) {
			t.Errorf("methods %q", got)
		}
		accounts(t, x, y)
	})
}

// TestMiddlewareSeesEveryRequestOnce sends what takes different ways to a
// handler: inline and on workers, plain and in fragments, by number and by name.
func TestMiddlewareSeesEveryRequestOnce(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		var outside, inside, notes atomic.Int64
		m := echoMux(nil)
		handle := HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			inside.Add(1)
			if strings.HasPrefix(r.Method(), "slow") {
				runtime.Gosched()
				r.Conn().Ping(background) // waits
			}
			return append(reply, r.Payload()...), nil
		})
		m.Handle("slow", handle)
		m.Handle("quick", handle)
		m.Fallback(handle)
		m.Use(func(next Handler) Handler {
			return HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
				outside.Add(1)
				if r.OneWay() {
					notes.Add(1)
				}
				return next.ServeCall(r, reply)
			})
		})
		x, y := pair(t, transport, nil, serves(m))
		sent, sentNotes := int64(0), int64(0)
		for _, size := range []int{0, 100, 200 << 10} {
			for _, method := range []string{"slow", "quick", "slow by name", "quick by name"} {
				for range scaled(20) {
					if got, err := x.Call(background, method, make([]byte, size)); err != nil || len(got) != size {
						t.Fatalf("%s of %d bytes: %d bytes, %v", method, size, len(got), err)
					}
					if err := x.Notify(background, method, make([]byte, size)); err != nil {
						t.Fatal(err)
					}
					sent += 2
					sentNotes++
				}
			}
		}
		if err := x.Flush(background); err != nil {
			t.Fatal(err)
		}
		if outside.Load() != sent || inside.Load() != sent || notes.Load() != sentNotes {
			t.Errorf("%d requests sent, %d seen by the middleware, %d by handlers; %d one-way, %d seen",
				sent, outside.Load(), inside.Load(), sentNotes, notes.Load())
		}
		accounts(t, x, y)
	})
}

func TestMiddlewareMayEndTheRequestItself(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		var ran atomic.Int64
		m := NewMux()
		for _, name := range []string{"refuse", "panic", "exit", "pass"} {
			m.HandleFunc(name, func(context.Context, []byte) ([]byte, error) { ran.Add(1); return nil, nil })
		}
		m.Use(func(next Handler) Handler {
			return HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
				switch r.Method() {
				case "refuse":
					return reply, Refused(PermissionDenied, "not you")
				case "panic":
					panic("in middleware")
				case "exit":
					runtime.Goexit()
				}
				return next.ServeCall(r, reply)
			})
		})
		x, y := pair(t, transport, nil, serves(m))
		for range 3 {
			for _, name := range []string{"refuse", "panic", "exit"} {
				_, err := x.Call(background, name, nil)
				if name == "refuse" {
					wantCode(t, err, PermissionDenied, true)
				} else {
					wantCode(t, err, Internal, false)
				}
				if err := x.Notify(background, name, nil); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := x.Flush(background); err != nil {
			t.Fatal(err)
		}
		if ran.Load() != 0 {
			t.Errorf("%d handlers ran of requests that were not passed on", ran.Load())
		}
		wantReplies(t, x, map[string]string{"pass": ""})
		accounts(t, x, y)
	})
}

// TestUseWhileRequestsRun changes the chain under traffic: every request meets
// one whole chain, and its method stays its method.
func TestUseWhileRequestsRun(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		m := echoMux(nil)
		var depth, notes atomic.Int64
		m.HandleFunc("note", func(context.Context, []byte) ([]byte, error) { notes.Add(1); return nil, nil })
		x, y := pair(t, transport, nil, serves(m))
		const layers = 20
		var wg sync.WaitGroup
		stop := make(chan struct{})
		var sent atomic.Int64
		for i := range 4 {
			wg.Go(func() {
				for seed := uint64(0); ; seed++ {
					select {
					case <-stop:
						return
					default:
					}
					if err := checkCall(background, x, 12+i*40, seed); err != nil {
						t.Error(err)
						return
					}
					if err := x.Notify(background, "note", nil); err != nil {
						t.Error(err)
						return
					}
					sent.Add(1)
				}
			})
		}
		for i := range layers {
			before := sent.Load()
			until(t, "traffic", func() bool { return sent.Load() > before || t.Failed() })
			m.Use(func(next Handler) Handler {
				return HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
					depth.Add(1)
					return next.ServeCall(r, reply)
				})
			})
			m.HandleFunc(fmt.Sprint("method ", i), func(context.Context, []byte) ([]byte, error) { return nil, nil })
		}
		close(stop)
		wg.Wait()
		if err := x.Flush(background); err != nil {
			t.Fatal(err)
		}
		if notes.Load() != sent.Load() {
			t.Errorf("%d one-way messages sent, %d handled", sent.Load(), notes.Load())
		}
		depth.Store(0)
		if err := checkCall(background, x, 100, 1); err != nil || depth.Load() != layers {
			t.Errorf("%d layers, %v, want %d", depth.Load(), err, layers)
		}
		accounts(t, x, y)
	})
}

// TestMiddlewareThatFailsChangesNothing: what is wrong with middleware shows when
// it is given, not when a request comes, and leaves the Mux as it was.
func TestMiddlewareThatFailsChangesNothing(t *testing.T) {
	returnsNil := func(Handler) Handler { return nil }
	h := HandlerFunc(func(r *Request, reply []byte) ([]byte, error) { return reply, nil })
	full := func() *Mux {
		m := NewMux()
		m.Handle("m", h)
		m.Fallback(h)
		return m
	}
	for _, test := range []struct {
		name string
		do   func(m *Mux)
		text string
	}{
		{"nil", func(m *Mux) { m.Use(layer("a"), nil) }, "middleware 2 of 2 is nil"},
		{"nil alone", func(m *Mux) { m.Use(nil) }, "middleware 1 of 1 is nil"},
		{"returns nil", func(m *Mux) { m.Use(layer("a"), returnsNil) }, `method "m": middleware 2 of 2 returned nil`},
		{"panics", func(m *Mux) { m.Use(func(Handler) Handler { panic("from middleware") }) }, "from middleware"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := full()
			before := m.table.Load()
			var text string
			func() {
				defer func() { text = fmt.Sprint(recover()) }()
				test.do(m)
			}()
			if !strings.Contains(text, test.text) {
				t.Errorf("panicked with %q, want %q", text, test.text)
			}
			if m.table.Load() != before {
				t.Error("the table has changed")
			}
			m.Handle("another", h) // nothing is locked
		})
	}
	t.Run("ends its goroutine", func(t *testing.T) {
		m := full()
		var wg sync.WaitGroup
		wg.Go(func() { m.Use(func(Handler) Handler { runtime.Goexit(); return nil }) })
		wg.Wait()
		m.Handle("another", h)
	})
	t.Run("later handlers", func(t *testing.T) {
		m := NewMux()
		m.Use(returnsNil)
		for what, do := range map[string]func(){
			`method "m": middleware 1 of 1 returned nil`:          func() { m.Handle("m", h) },
			`method "(fallback)": middleware 1 of 1 returned nil`: func() { m.Fallback(h) },
		} {
			var text string
			func() {
				defer func() { text = fmt.Sprint(recover()) }()
				do()
			}()
			if !strings.Contains(text, what) {
				t.Errorf("panicked with %q, want %q", text, what)
			}
		}
		if len(m.Methods()) != 0 {
			t.Errorf("methods %q", m.Methods())
		}
	})
}
