package plugwire

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// soon is how long a cancelled call may take to return: 10 ms, and what a busy
// machine adds to it.
const soon = 10*time.Millisecond + 90*time.Millisecond

// quickest runs f up to five times and fails the test when it never took less
// than 10 ms, or once took longer than soon by far: one run can be unlucky.
func quickest(t *testing.T, what string, f func() time.Duration) {
	t.Helper()
	least := time.Hour
	for range 5 {
		d := f()
		if least = min(least, d); least <= 10*time.Millisecond {
			return
		}
		if d > 20*soon {
			break
		}
	}
	t.Errorf("%s took %v at least", what, least)
}

func TestCancelReturnsAtOnceAndEndsTheHandlersContext(t *testing.T) {
	for _, others := range []int{0, 1, 8} {
		overTransports(t, func(t *testing.T, transport string) {
			entered, ended := make(chan struct{}, 100), make(chan error, 100)
			m := echoMux(nil)
			m.HandleFunc("wait", func(ctx context.Context, _ []byte) ([]byte, error) {
				entered <- struct{}{}
				<-ctx.Done()
				ended <- ctx.Err()
				return nil, ctx.Err()
			})
			x, y := pair(t, transport, nil, serves(m))
			until(t, "the table", func() bool { return x.Methods() != nil })
			stop := make(chan struct{})
			var wg sync.WaitGroup
			for i := range others {
				wg.Go(func() {
					for k := 0; ; k++ {
						select {
						case <-stop:
							return
						default:
						}
						if err := checkCall(background, x, 20+k%5000, uint64(i*1000+k)); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			for _, cause := range []error{context.Canceled, context.DeadlineExceeded} {
				quickest(t, cause.Error(), func() time.Duration {
					ctx, cancel := context.WithCancel(background)
					var at atomic.Int64
					if cause == context.DeadlineExceeded {
						var release context.CancelFunc
						end := time.Now().Add(30 * time.Millisecond)
						at.Store(end.UnixNano())
						ctx, release = context.WithDeadline(ctx, end)
						defer release()
					} else {
						wg.Go(func() {
							<-entered
							// Long enough for a lone caller to be reading its own reply.
							time.Sleep(5 * time.Millisecond)
							at.Store(time.Now().UnixNano())
							cancel()
						})
					}
					_, err := x.Call(ctx, "wait", nil)
					took := time.Since(time.Unix(0, at.Load()))
					if !errors.Is(err, cause) || NotRun(err) {
						t.Errorf("error %v, NotRun %v", err, NotRun(err))
					}
					if cause == context.DeadlineExceeded {
						select {
						case <-entered:
						case <-time.After(time.Second): // it came too late to be run
							cancel()
							return took
						}
					}
					if got := receive(t, "the handler's end", ended); !errors.Is(got, context.Canceled) && !errors.Is(got, cause) {
						t.Errorf("the handler's context ended with %v", got)
					}
					cancel()
					return took
				})
			}
			close(stop)
			wg.Wait()
			accounts(t, x, y)
		})
	}
}

func TestDeadlineTravels(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		m := NewMux()
		m.Handle("left", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			d, ok := r.Deadline()
			d2, ok2 := r.Context().Deadline()
			if ok != ok2 || !d.Equal(d2) {
				return nil, errors.New("request and context disagree")
			}
			if !ok {
				return append(reply, "none"...), nil
			}
			return append(reply, time.Until(d).String()...), nil
		}))
		inner, _ := pair(t, transport, nil, serves(m))
		relay := NewMux()
		relay.Handle("left", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			return inner.Call(r.Context(), "left", nil)
		}))
		x, _ := pair(t, transport, nil, serves(relay))
		if got, err := x.Call(background, "left", nil); string(got) != "none" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		ctx, cancel := context.WithTimeout(background, time.Minute)
		defer cancel()
		got, err := x.Call(ctx, "left", nil)
		left, perr := time.ParseDuration(string(got))
		if err != nil || perr != nil || left > time.Minute || left < 50*time.Second {
			t.Errorf("%q, %v", got, err)
		}
		for _, size := range []int{0, 500 << 10} {
			past, cancel := context.WithDeadline(background, time.Now().Add(-time.Second))
			before := x.Stats().CallsSent
			_, err = x.Call(past, "left", make([]byte, size))
			cancel()
			wantCode(t, err, DeadlineExceeded, true)
			if x.Stats().CallsSent != before {
				t.Error("a call was sent though its deadline had passed")
			}
		}
		gone, cancel := context.WithCancel(background)
		cancel()
		_, err = x.Call(gone, "left", nil)
		wantCode(t, err, Canceled, true)
		wantCode(t, x.Notify(gone, "left", nil), Canceled, true)
	})
}

// anyone is an Authorize for ends that hide their descriptor.
func anyone(*Peer) error { return nil }

// TestCancelInTheMiddleOfARequest gives up requests of which some fragments were
// sent and the rest waits for room, because the other side's reader stalls.
func TestCancelInTheMiddleOfARequest(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		cfg := &Config{Unix: UnixConfig{BufferSize: 4096}, TCP: TCPConfig{BufferSize: 128 << 10}}
		dialled, accepted := netPair(t, transport, cfg)
		gate := &gatedConn{Conn: accepted}
		x, y := openPair(t, dialled, gate, nil, &Config{Mux: echoMux(nil), Authorize: anyone})
		if err := checkCall(background, x, 100, 1); err != nil {
			t.Fatal(err)
		}
		for round := range scaled(3) {
			gate.mu.Lock() // y reads nothing from now on
			var wg sync.WaitGroup
			ctx, cancel := context.WithCancel(background)
			for i := range 4 {
				wg.Go(func() {
					_, err := x.Call(ctx, "check", sealed(8<<20, uint64(i)))
					wantCode(t, err, Canceled, true)
				})
			}
			until(t, "requests to be stuck", func() bool {
				x.out.Lock()
				defer x.out.Unlock()
				return x.out.Len() > 100<<10
			})
			cancel()
			wg.Wait()
			gate.mu.Unlock()
			for i := range 3 {
				if err := checkCall(background, x, 1+i*200<<10, uint64(i)); err != nil {
					t.Fatalf("round %d: the connection does not live on: %v", round, err)
				}
			}
			accounts(t, x, y)
		}
	})
}

func TestCancelledCallsLoseNoSlot(t *testing.T) {
	t.Parallel()
	overTransports(t, func(t *testing.T, transport string) {
		const limit = 8
		unblock := make(chan struct{})
		x, y := pair(t, transport, nil, &Config{Mux: echoMux(unblock), Limits: Limits{MaxCalls: limit}})
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(i), 1))
				for k := range 60 {
					ctx, cancel := context.WithTimeout(background, time.Duration(rng.IntN(1500))*time.Microsecond)
					method, size := "block", 0
					if k%2 == 0 {
						method, size = "echo", rng.IntN(300<<10)
					}
					x.Call(ctx, method, make([]byte, size))
					cancel()
				}
			})
		}
		wg.Wait()
		accounts(t, x, y)
		for range limit {
			wg.Go(func() {
				if _, err := x.Call(background, "block", nil); err != nil {
					t.Error(err)
				}
			})
		}
		until(t, "all slots to be in use at the same time", func() bool { return y.servingCount.Load() == limit })
		close(unblock)
		wg.Wait()
		accounts(t, x, y)
	})
}

// TestAFailedCallLeavesNothingUnsent: whoever promises to write for others keeps
// the promise also when its own call comes to nothing.
func TestAFailedCallLeavesNothingUnsent(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		unblock := make(chan struct{})
		x, y := pair(t, transport, nil, serves(echoMux(unblock)))
		until(t, "the table", func() bool { return x.Methods() != nil })
		var wg sync.WaitGroup
		for range 3 { // so that nobody is alone
			wg.Go(func() { x.Call(background, "block", nil) })
		}
		until(t, "calls to run", func() bool { return y.servingCount.Load() == 3 })
		for range 10 {
			if _, err := x.Call(background, "no such method", nil); err == nil {
				t.Error("no error")
			}
			ctx, cancel := context.WithTimeout(background, 10*time.Second)
			if err := checkCall(ctx, x, 100, 1); err != nil {
				t.Fatalf("a call was left in the buffer: %v", err)
			}
			cancel()
		}
		close(unblock)
		wg.Wait()
		accounts(t, x, y)
	})
}

// TestCancelWhileAReplyArrivesInPieces: a caller that gives up just as a fragment
// is stored for it does not wait for the rest.
func TestCancelWhileAReplyArrivesInPieces(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		x, peer := scripted(t, transport, nil)
		ctx, cancel := context.WithCancel(background)
		done := make(chan error, 1)
		go func() {
			_, err := x.Call(ctx, "slow", nil)
			done <- err
		}()
		h, _ := peer.expect(FrameCall)
		const part = 4096
		b := appendFrameHeader(nil, FrameHeader{Type: FrameReply, Flags: FlagBack | FlagBegin | FlagMore, ID: h.ID, Length: 4 + part})
		b = append(b, 0, 0, 0x10, 0) // 1 MiB in all
		peer.send(append(b, make([]byte, part)...))
		e := x.calls.at(h.ID)
		until(t, "the first part", func() bool { return e.state.Load() == callWaiting && x.readBytes.Load() > part })
		// As the reader does, for the time that it takes to store a fragment.
		if !e.claim() {
			t.Fatal("cannot claim the call")
		}
		cancel()
		time.AfterFunc(20*time.Millisecond, func() { e.state.Store(callWaiting) })
		select {
		case err := <-done:
			wantCode(t, err, Canceled, false)
		case <-time.After(5 * time.Second):
			t.Error("the cancelled caller still waits")
		}
	})
}
