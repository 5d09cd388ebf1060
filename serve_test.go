package plugwire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// takeOverNow has a stand-in take the reading role from the goroutine of r's
// handler, when that has it.
func takeOverNow(r *Request) {
	c := r.Conn()
	if word := c.role.Load(); word&roleMask == roleHandler {
		c.takeOver(word)
	}
}

// randomTakeOvers is middleware that does so in one of n runs of every handler.
func randomTakeOvers(n int) func(Handler) Handler {
	return func(next Handler) Handler {
		return HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			if rand.IntN(n) == 0 {
				takeOverNow(r)
			}
			return next.ServeCall(r, reply)
		})
	}
}

// parallelChecks makes n verified calls from some goroutines.
func parallelChecks(t *testing.T, c Caller, n int) {
	t.Helper()
	var wg sync.WaitGroup
	var next atomic.Int64
	for range 16 {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				if err := checkCall(background, c, 12+int(i*i)%700, uint64(i)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestALoneBadHandlerHarmsNoOtherCall(t *testing.T) {
	t.Parallel()
	overTransports(t, func(t *testing.T, transport string) {
		unblock := make(chan struct{})
		m := echoMux(unblock)
		m.HandleFunc("sleep", func(context.Context, []byte) ([]byte, error) {
			time.Sleep(300 * time.Millisecond)
			return nil, nil
		})
		m.HandleFunc("spin", func(context.Context, []byte) ([]byte, error) {
			for end := time.Now().Add(100 * time.Millisecond); time.Now().Before(end); {
			}
			return nil, nil
		})
		m.HandleFunc("panic", func(context.Context, []byte) ([]byte, error) { panic("on purpose") })
		m.HandleFunc("exit", func(context.Context, []byte) ([]byte, error) {
			runtime.Goexit()
			return nil, nil
		})
		m.HandleFunc("panicslow", func(context.Context, []byte) ([]byte, error) {
			time.Sleep(5 * time.Millisecond)
			panic("on purpose, late")
		})
		m.HandleFunc("exitslow", func(context.Context, []byte) ([]byte, error) {
			time.Sleep(5 * time.Millisecond)
			runtime.Goexit()
			return nil, nil
		})
		x, y := pair(t, transport, nil, serves(m))
		for _, bad := range []string{"block", "sleep", "spin", "panic", "exit", "panicslow", "exitslow"} {
			done := make(chan error, 1)
			go func() {
				_, err := x.Call(background, bad, nil)
				done <- err
			}()
			parallelChecks(t, x, 1000)
			if bad == "block" {
				select {
				case err := <-done:
					t.Errorf("the blocked call ended: %v", err)
				default:
				}
				close(unblock)
			}
			err := receive(t, bad, done)
			switch bad {
			case "block", "sleep", "spin":
				if err != nil {
					t.Errorf("%s: %v", bad, err)
				}
			default:
				wantCode(t, err, Internal, false)
			}
		}
		accounts(t, x, y)
	})
}

// T20: of three handlers two panic and one ends its goroutine, of calls, one-way
// messages and streams, a thousand of each. Other calls do not notice.
func TestT20AThousandPanics(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		m := echoMux(nil)
		var n atomic.Int64
		m.Handle("bad", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			switch n.Add(1) % 3 {
			case 0:
				runtime.Goexit()
			case 1:
				panic(errors.New("on purpose"))
			}
			var nothing *Request
			return nothing.Payload(), nil
		}))
		m.HandleStream("bad stream", func(*Stream) error {
			if n.Add(1)%3 == 0 {
				runtime.Goexit()
			}
			panic("on purpose")
		})
		x, y := pair(t, transport, nil, serves(m))
		var wg sync.WaitGroup
		wg.Go(func() { parallelChecks(t, x, 1000) })
		for range 8 {
			wg.Go(func() {
				for range 1000 / 8 {
					_, err := x.Call(background, "bad", nil)
					wantCode(t, err, Internal, false)
					s, err := x.OpenStream(background, "bad stream")
					if err == nil {
						_, err = s.Recv()
						s.Close()
					}
					wantCode(t, err, Internal, false)
					if err := x.Notify(background, "bad", nil); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if err := x.Flush(background); err != nil {
			t.Error(err)
		}
		if n.Load() != 3000 {
			t.Errorf("%d handlers ran", n.Load())
		}
		parallelChecks(t, x, 100)
		accounts(t, x, y)
	})
}

// TestTakeOverAtEveryHandler forces a stand-in at each handler, from its own
// goroutine or in a race with its return, while calls and one-way messages of
// all sizes arrive, and some handlers panic or end their goroutine.
func TestTakeOverAtEveryHandler(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		for _, mode := range []string{"own", "racing"} {
			t.Run(mode, func(t *testing.T) { testTakeOverAtEveryHandler(t, transport, mode) })
		}
	})
}

func testTakeOverAtEveryHandler(t *testing.T, transport, mode string) {
	force := make(chan *Conn, 64)
	var forcers sync.WaitGroup
	defer forcers.Wait()
	defer close(force)
	for range 2 {
		forcers.Go(func() {
			for c := range force {
				if word := c.role.Load(); word&roleMask == roleHandler {
					c.takeOver(word)
				}
			}
		})
	}
	take := func(r *Request) {
		if mode == "own" {
			takeOverNow(r)
			return
		}
		select {
		case force <- r.Conn():
			runtime.Gosched()
		default:
		}
	}
	var next, wrong, handled atomic.Uint64
	m := NewMux()
	m.Handle("call", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		take(r)
		seed, err := unseal(r.Payload())
		if err != nil {
			wrong.Add(1)
			return reply, err
		}
		switch seed % 50 {
		case 7:
			panic("on purpose")
		case 8:
			runtime.Goexit()
		}
		runtime.Gosched()
		reply = append(reply, r.Payload()...)
		if _, err := unseal(reply); err != nil {
			wrong.Add(1)
		}
		return reply, nil
	}))
	m.Handle("note", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		take(r)
		seed, err := unseal(r.Payload())
		if err != nil {
			wrong.Add(1)
		}
		if want := next.Add(1) - 1; seed != want {
			wrong.Add(1)
			t.Errorf("one-way message %d came as number %d", seed, want)
		}
		handled.Add(1)
		switch seed % 50 {
		case 7:
			panic("on purpose")
		case 8:
			runtime.Goexit()
		}
		return reply, nil
	}))
	x, y := pair(t, transport, nil, &Config{Mux: m, Limits: Limits{OneWayWindow: 64 << 10}})
	until(t, "the table", func() bool { return x.Methods() != nil })
	notes := scaled(3000)
	var wg sync.WaitGroup
	wg.Go(func() {
		rng := rand.New(rand.NewPCG(3, 4))
		for i := range uint64(notes) {
			size := rng.IntN(300)
			if i%100 == 0 {
				size = rng.IntN(200 << 10)
			}
			if err := x.Notify(background, "note", sealed(size, i)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for g := range 6 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 4))
			for i := range scaled(400) {
				size := rng.IntN(600)
				if i%40 == 0 {
					size = rng.IntN(200 << 10)
				}
				seed := uint64(g*1000 + i)
				req := sealed(size, seed)
				reply, err := x.Call(background, "call", req)
				switch {
				case seed%50 == 7 || seed%50 == 8:
					if CodeOf(err) != Internal {
						t.Errorf("call %d: %v", seed, err)
					}
				case err != nil || !bytes.Equal(reply, req):
					t.Errorf("call %d of %d bytes: %d came back, %v", seed, len(req), len(reply), err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := x.Flush(background); err != nil || handled.Load() != uint64(notes) {
		t.Errorf("%d of %d one-way messages handled, %v", handled.Load(), notes, err)
	}
	if wrong.Load() > 0 {
		t.Errorf("%d payloads wrong", wrong.Load())
	}
	accounts(t, x, y)
}

func TestPayloadStaysIntactDuringATakeOver(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		unblock := make(chan struct{})
		entered := make(chan struct{}, 10)
		m := echoMux(unblock)
		m.Handle("hold", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			reply = append(reply, r.Payload()[:len(r.Payload())/2]...)
			entered <- struct{}{}
			<-unblock
			reply = append(reply, r.Payload()[len(r.Payload())/2:]...)
			return reply, nil
		}))
		x, y := pair(t, transport, nil, serves(m))
		var wg sync.WaitGroup
		for i := range 4 { // as many as will be caught before the method goes to workers, and one more
			wg.Go(func() {
				req := sealed(10000+i, uint64(i))
				reply, err := x.Call(background, "hold", req)
				if err != nil || !bytes.Equal(reply, req) {
					t.Errorf("%d bytes, %v", len(reply), err)
				}
			})
			receive(t, "the handler", entered)
		}
		parallelChecks(t, x, 2000)
		var big sync.WaitGroup
		for i := range 4 {
			big.Go(func() {
				if err := checkCall(background, x, 1<<20, uint64(i)); err != nil {
					t.Error(err)
				}
			})
		}
		big.Wait()
		close(unblock)
		wg.Wait()
		accounts(t, x, y)
	})
}

// TestHandlersOwnSlicesAreLeftAlone: a handler that returns a slice of its own
// instead of what it was given must not find it overwritten by others.
func TestHandlersOwnSlicesAreLeftAlone(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		constant := []byte("a reply that is the same each time")
		m := echoMux(nil)
		m.Handle("constant", HandlerFunc(func(*Request, []byte) ([]byte, error) { return constant, nil }))
		m.Handle("itself", HandlerFunc(func(r *Request, _ []byte) ([]byte, error) { return r.Payload(), nil }))
		x, y := pair(t, transport, nil, serves(m))
		want := string(constant)
		var calls []*Call
		for i := range 300 {
			calls = append(calls, &Call{Method: []string{"constant", "echo", "itself", "echo"}[i%4], Request: sealed(30+i%50, uint64(i))})
		}
		for range 5 {
			for _, c := range calls {
				c.Reply = c.Reply[:0]
			}
			if err := x.DoAll(background, calls); err != nil {
				t.Fatal(err)
			}
			for i, c := range calls {
				if c.Method == "constant" && string(c.Reply) != want || c.Method != "constant" && !bytes.Equal(c.Reply, c.Request) {
					t.Fatalf("call %d, %s: %q", i, c.Method, c.Reply)
				}
			}
			if string(constant) != want {
				t.Fatalf("the handler's own slice is now %q", constant)
			}
		}
		accounts(t, x, y)
	})
}

func TestRepliesAreNotMixedUp(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		x, y := pair(t, transport, serves(echoMux(nil)), serves(echoMux(nil)))
		var wg sync.WaitGroup
		for g := range 12 {
			c := []*Conn{x, y}[g%2]
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(g), 9))
				for i := range scaled(150) {
					n := []int{12, 64, 1000, 9000, 70000, 400000}[min(5, rng.IntN(3)+rng.IntN(4))]
					if err := checkCall(background, c, 12+rng.IntN(n), uint64(g*1000+i)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		accounts(t, x, y)
	})
}

func TestASlowMethodGoesToWorkersAndComesBack(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		unblock := make(chan struct{})
		var slow atomic.Bool
		slow.Store(true)
		m := echoMux(nil)
		m.Handle("moody", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			inline := r.reader != nil
			if slow.Load() {
				if inline {
					takeOverNow(r)
				} else {
					<-unblock // on a worker: harms nobody
				}
			}
			return fmt.Appendf(reply, "%v", inline), nil
		}))
		x, y := pair(t, transport, nil, serves(m))
		for i := range slowAfter {
			if got, err := x.Call(background, "moody", nil); string(got) != "true" || err != nil {
				t.Fatalf("run %d: inline %q, %v", i, got, err)
			}
		}
		done := make(chan string, 1)
		go func() {
			got, _ := x.Call(background, "moody", nil)
			done <- string(got)
		}()
		parallelChecks(t, x, 200)
		close(unblock)
		if got := receive(t, "the slow call", done); got != "false" {
			t.Errorf("after %d catches the method still ran inline", slowAfter)
		}
		slow.Store(false)
		// Back inline in time; a busy machine may make it look slow again meanwhile.
		calls := make([]*Call, slowRuns)
		for i := range calls {
			calls[i] = &Call{Method: "moody"}
		}
		until(t, "the method to come back from its workers", func() bool {
			calls[0].Reply = nil
			if err := x.DoAll(background, calls); err != nil {
				t.Fatal(err)
			}
			got, err := x.Call(background, "moody", nil)
			return string(got) == "true" && err == nil
		})
		accounts(t, x, y)
	})
}
