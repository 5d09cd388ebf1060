package middleware

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plugwire/plugwire"
)

var background = context.Background()

// in returns what enter takes: a function that returns ctx.
func in(ctx context.Context) func() context.Context {
	return func() context.Context { return ctx }
}

func TestGateAdmitsQueuesAndRefuses(t *testing.T) {
	for _, test := range []struct{ n, queue int }{{1, 0}, {1, -3}, {1, 1}, {3, 0}, {3, 5}, {100, 100}} {
		t.Run(fmt.Sprint(test.n, " and ", test.queue), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGate(test.n, test.queue)
				for range test.n {
					if !g.tryEnter() {
						t.Fatal("no place, though there must be one")
					}
				}
				if g.tryEnter() {
					t.Fatal("a place too many")
				}
				// In the order in which they came.
				order := make(chan int, 1000)
				queue := max(test.queue, 0)
				for i := range queue {
					go func() {
						if err := g.enter(false, in(background)); err != nil {
							t.Error(err)
						}
						order <- i
					}()
					synctest.Wait()
				}
				for range 3 {
					err := g.enter(false, func() context.Context { panic("asked for a context to refuse") })
					wantError(t, err, plugwire.ResourceExhausted, true)
				}
				// One-way messages find room all the same, at the end of the line.
				go func() {
					if err := g.enter(true, in(background)); err != nil {
						t.Error(err)
					}
					order <- queue
				}()
				synctest.Wait()
				for i := range queue + 1 {
					g.leave()
					if got := <-order; got != i {
						t.Errorf("number %d entered as number %d", got, i)
					}
				}
				synctest.Wait()
				if n := len(g.places); n != test.n || g.waiting.Load() != 0 {
					t.Errorf("%d places taken, %d wait; want %d and none", n, g.waiting.Load(), test.n)
				}
				for range test.n {
					g.leave()
				}
			})
		})
	}
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	cancelled := func() (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancel(background)
		time.AfterFunc(time.Second, cancel)
		return ctx, cancel
	}
	late := func() (context.Context, context.CancelFunc) { return context.WithTimeout(background, time.Second) }
	for _, test := range []struct {
		name    string
		context func() (context.Context, context.CancelFunc)
		code    plugwire.Code
	}{{"cancelled", cancelled, plugwire.Canceled}, {"late", late, plugwire.DeadlineExceeded}} {
		for _, oneWay := range []bool{false, true} {
			t.Run(fmt.Sprint(test.name, ", one-way ", oneWay), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					g := newGate(1, 1)
					g.tryEnter()
					ctx, cancel := test.context()
					defer cancel()
					start := time.Now()
					wantError(t, g.enter(oneWay, in(ctx)), test.code, true)
					if d := time.Since(start); d != time.Second {
						t.Errorf("waited for %v", d)
					}
					if len(g.places) != 1 || g.waiting.Load() != 0 {
						t.Errorf("%d places taken, %d wait", len(g.places), g.waiting.Load())
					}
					// The place in the queue is free again, and so is the gate afterwards.
					g.leave()
					if !g.tryEnter() {
						t.Error("the place is lost")
					}
				})
			})
		}
	}
}

// A place that comes together with the end of the context is not lost, and a
// call that nobody waits for does not run.
func TestPlaceAndEndAtTheSameTime(t *testing.T) {
	ctx, cancel := context.WithCancel(background)
	cancel()
	g := newGate(1, 1)
	admitted := 0
	for range 100 { // both cases of the select are ready: either may be taken
		wantError(t, g.enter(false, in(ctx)), plugwire.Canceled, true)
		if err := g.enter(true, in(ctx)); err == nil {
			admitted++
			g.leave()
		}
		if len(g.places) != 0 || g.waiting.Load() != 0 {
			t.Fatalf("%d places taken, %d wait", len(g.places), g.waiting.Load())
		}
	}
	if admitted == 0 {
		t.Error("no one-way message was let in though there was a place")
	}
}

func TestConcurrencyLimitOverConnections(t *testing.T) {
	overTransports(t, func(t *testing.T, addr string) {
		const n, queue = 2, 3
		running, most := atomic.Int64{}, atomic.Int64{}
		entered, proceed := make(chan struct{}, 100), make(chan struct{})
		mux := plugwire.NewMux()
		work := func(context.Context, []byte) ([]byte, error) {
			now := running.Add(1)
			defer running.Add(-1)
			for {
				if m := most.Load(); now <= m || most.CompareAndSwap(m, now) {
					break
				}
			}
			entered <- struct{}{}
			<-proceed
			return nil, nil
		}
		mux.HandleFunc("work", work)
		mux.HandleFunc("too", work) // the same limit
		g := &limited{gate: newGate(n, queue)}
		mux.Use(func(next plugwire.Handler) plugwire.Handler { return &limited{g.gate, next} })
		connect := serve(t, addr, mux, nil)
		conns := []*plugwire.Conn{connect(), connect(), connect()}
		results := make(chan error, n+queue)
		for i := range n + queue {
			go func() {
				_, err := conns[i%len(conns)].Call(background, []string{"work", "too"}[i%2], nil)
				results <- err
			}()
		}
		for range n {
			receive(t, "a handler", entered)
		}
		until(t, "the queue", func() bool { return g.gate.waiting.Load() == queue })
		for _, c := range conns {
			_, err := c.Call(background, "work", nil)
			wantError(t, err, plugwire.ResourceExhausted, true)
		}
		// One-way messages wait; none is lost.
		const notes = 20
		for _, c := range conns {
			for range notes {
				if err := c.Notify(background, "too", nil); err != nil {
					t.Fatal(err)
				}
			}
		}
		close(proceed)
		for range n + queue {
			if err := receive(t, "the end of a call", results); err != nil {
				t.Error(err)
			}
		}
		for _, c := range conns {
			if err := c.Flush(background); err != nil {
				t.Error(err)
			}
		}
		if got := len(entered) + n; got != n+queue+len(conns)*notes {
			t.Errorf("%d handlers ran, want %d", got, n+queue+len(conns)*notes)
		}
		if most.Load() > n {
			t.Errorf("%d handlers ran at once, the limit is %d", most.Load(), n)
		}
		if len(g.gate.places) != 0 || g.gate.waiting.Load() != 0 {
			t.Errorf("%d places taken, %d wait", len(g.gate.places), g.gate.waiting.Load())
		}
	})
}

// A caller that goes leaves the queue, and so does one whose connection ends; its
// one-way message with it.
func TestWhoGoesLeavesTheQueue(t *testing.T) {
	overTransports(t, func(t *testing.T, addr string) {
		g := newGate(1, 10)
		proceed := make(chan struct{})
		var ran atomic.Int64
		mux := plugwire.NewMux()
		mux.HandleFunc("work", func(context.Context, []byte) ([]byte, error) { ran.Add(1); <-proceed; return nil, nil })
		var arrived atomic.Int64
		noted := make(chan struct{})
		mux.Use(func(next plugwire.Handler) plugwire.Handler {
			inner := &limited{g, next}
			return plugwire.HandlerFunc(func(r *plugwire.Request, reply []byte) ([]byte, error) {
				arrived.Add(1)
				defer arrived.Add(-1)
				if r.OneWay() {
					close(noted)
				}
				return inner.ServeCall(r, reply)
			})
		})
		connect := serve(t, addr, mux, nil)
		stays, goes := connect(), connect()
		first := make(chan error, 1)
		go func() { _, err := stays.Call(background, "work", nil); first <- err }()
		until(t, "the first", func() bool { return ran.Load() == 1 })
		ctx, cancel := context.WithCancel(background)
		defer cancel()
		ended := make(chan error, 3)
		go func() { _, err := stays.Call(ctx, "work", nil); ended <- err }()
		go func() {
			ctx, cancel := context.WithTimeout(background, 20*time.Millisecond)
			defer cancel()
			_, err := stays.Call(ctx, "work", nil)
			ended <- err
		}()
		go func() { _, err := goes.Call(background, "work", nil); ended <- err }()
		if err := goes.Notify(background, "work", nil); err != nil {
			t.Fatal(err)
		}
		receive(t, "the one-way message", noted)
		until(t, "those that wait", func() bool { return g.waiting.Load() >= 2 }) // the late one may have gone
		cancel()
		goes.Close()
		for range 3 {
			if receive(t, "the end of a call", ended) == nil {
				t.Error("a call that was given up has succeeded")
			}
		}
		until(t, "nobody waiting", func() bool { return g.waiting.Load() == 0 && arrived.Load() == 1 })
		close(proceed)
		if err := receive(t, "the first", first); err != nil {
			t.Error(err)
		}
		if ran.Load() != 1 {
			t.Errorf("%d handlers ran, want only the first", ran.Load())
		}
		until(t, "the place", func() bool { return len(g.places) == 0 })
	})
}

func TestPlacesOfHandlersThatDoNotReturn(t *testing.T) {
	overTransports(t, func(t *testing.T, addr string) {
		mux := plugwire.NewMux()
		mux.HandleFunc("panic", func(context.Context, []byte) ([]byte, error) { panic("on purpose") })
		mux.HandleFunc("exit", func(context.Context, []byte) ([]byte, error) { runtime.Goexit(); return nil, nil })
		mux.HandleFunc("fine", func(context.Context, []byte) ([]byte, error) { return nil, nil })
		mux.Use(ConcurrencyLimit(1, 0))
		c := serve(t, addr, mux, nil)()
		for range 5 {
			for _, name := range []string{"panic", "exit"} {
				_, err := c.Call(background, name, nil)
				wantError(t, err, plugwire.Internal, false)
				if err := c.Notify(background, name, nil); err != nil {
					t.Fatal(err)
				}
				if err := c.Flush(background); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := c.Call(background, "fine", nil); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestConcurrencyLimitUnderLoad(t *testing.T) {
	overTransports(t, func(t *testing.T, addr string) {
		const n = 3
		var running, ran, good, refused atomic.Int64
		mux := plugwire.NewMux()
		mux.HandleFunc("work", func(context.Context, []byte) ([]byte, error) {
			if now := running.Add(1); now > n {
				t.Errorf("%d handlers at once", now)
			}
			runtime.Gosched()
			ran.Add(1)
			running.Add(-1)
			return nil, nil
		})
		mux.Use(ConcurrencyLimit(n, 2))
		connect := serve(t, addr, mux, nil)
		var wg sync.WaitGroup
		for range 4 {
			c := connect()
			for range 4 {
				wg.Go(func() {
					for range 50 {
						switch _, err := c.Call(background, "work", nil); {
						case err == nil:
							good.Add(1)
						case plugwire.NotRun(err) && plugwire.CodeOf(err) == plugwire.ResourceExhausted:
							refused.Add(1)
						default:
							t.Error(err)
						}
					}
				})
			}
		}
		wg.Wait()
		if ran.Load() != good.Load() || good.Load()+refused.Load() != 4*4*50 {
			t.Errorf("%d ran, %d replies, %d refused", ran.Load(), good.Load(), refused.Load())
		}
	})
}

func TestConcurrencyLimitAllocatesNothing(t *testing.T) {
	h, r := ConcurrencyLimit(1, 1)(empty), new(plugwire.Request)
	noAllocations(t, "with a place free", func() { h.ServeCall(r, nil) })
	g := newGate(1, 0)
	g.tryEnter()
	noAllocations(t, "refused", func() { g.enter(false, r.Context) })
}

func TestLimitsThatMakeNoSensePanic(t *testing.T) {
	zero := 0.0
	for what, f := range map[string]func(){
		"no place":        func() { ConcurrencyLimit(0, 5) },
		"negative":        func() { ConcurrencyLimit(-1, 5) },
		"no rate":         func() { RateLimit(0, 1) },
		"negative rate":   func() { RateLimit(-1, 1) },
		"infinite rate":   func() { RateLimit(1/zero, 1) },
		"rate not number": func() { RateLimit(zero/zero, 1) },
		"no burst":        func() { RateLimit(1, 0) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", what)
				}
			}()
			f()
		}()
	}
}
