package plugwire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var background = context.Background()

func TestCallEchoesEverySize(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		const frame, message = 8 << 10, 4 << 20
		limits := Limits{MaxFrame: frame, MaxMessage: message}
		// Both ways: what is cut small is the request, and then the reply.
		x, y := pair(t, transport, nil, &Config{Mux: echoMux(nil), Limits: limits})
		testEchoes(t, x, y, frame, message)
		x, y = pair(t, transport, &Config{Limits: limits}, serves(echoMux(nil)))
		testEchoes(t, x, y, frame, message)
	})
}

func testEchoes(t *testing.T, x, y *Conn, frame, message int) {
	for range scaled(2) { // at first by name
		for _, n := range []int{0, 1, 12, 13, frame - 12, frame - 5, frame - 1, frame, frame + 1, frame + 12, 2 * frame, 2*frame + 1,
			maxFrame - 1, maxFrame, maxFrame + 1, 3 << 20, message - 1, message} {
			req := fill(n, uint64(n))
			reply, err := x.Call(background, "echo", req)
			if err != nil || !bytes.Equal(reply, req) {
				t.Fatalf("%d bytes: %d came back, error %v", n, len(reply), err)
			}
		}
		_, err := x.Call(background, "echo", make([]byte, message+1))
		wantCode(t, err, ResourceExhausted, x.limits.message == message)
		if _, err := x.Call(background, "echo", nil); err != nil {
			t.Errorf("after a request that was too large: %v", err)
		}
		accounts(t, x, y)
	}
}

func TestReplyLargerThanTheCallerTakesIsAnErrorThatRan(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		m := echoMux(nil)
		m.HandleFunc("big", func(context.Context, []byte) ([]byte, error) { return make([]byte, 8<<10+1), nil })
		x, y := pair(t, transport, &Config{Limits: Limits{MaxMessage: 8 << 10}}, serves(m))
		_, err := x.Call(background, "big", nil)
		wantCode(t, err, ResourceExhausted, false)
		if err := checkCall(background, x, 100, 1); err != nil {
			t.Error(err)
		}
		accounts(t, x, y)
	})
}

func TestDoAppendsToReply(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		x, _ := pair(t, transport, nil, serves(echoMux(nil)))
		call := &Call{Method: "echo"}
		for i, n := range []int{5, 0, 3000, 100, maxFrame * 3, 7} {
			prefix := fmt.Appendf(nil, "prefix %d:", i)
			call.Request = fill(n, uint64(i))
			call.Reply = append(call.Reply[:0], prefix...)
			if err := x.Do(background, call); err != nil {
				t.Fatal(err)
			}
			if want := append(prefix, call.Request...); !bytes.Equal(call.Reply, want) {
				t.Fatalf("%d bytes after a prefix of %d: got %d, or wrong ones", n, len(prefix), len(call.Reply))
			}
		}
	})
}

func TestUnknownMethod(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		m := echoMux(nil)
		x, _ := pair(t, transport, nil, serves(m))
		// Possibly before the table has arrived, and certainly after it.
		for range 2 {
			_, err := x.Call(background, "nothing", nil)
			wantCode(t, err, Unimplemented, true)
			if err == nil || !strings.Contains(err.Error(), "nothing") {
				t.Errorf("the error does not name the method: %v", err)
			}
			until(t, "the table's arrival", func() bool { return x.Methods() != nil })
		}
		for _, name := range []string{"", strings.Repeat("x", 256)} {
			if _, err := x.Call(background, name, nil); err == nil || !NotRun(err) {
				t.Errorf("method name of %d bytes: %v", len(name), err)
			}
		}

		// A method that is added later is announced.
		m.HandleFunc("late", func(_ context.Context, b []byte) ([]byte, error) { return append([]byte("late "), b...), nil })
		until(t, "the announcement", func() bool { return len(x.Methods()) == 4 })
		if got, err := x.Call(background, "late", []byte("x")); string(got) != "late x" || err != nil {
			t.Errorf("%q, %v", got, err)
		}

		// With a fallback every name may be called.
		m.Fallback(HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			return append(append(reply, r.Method()...), r.Payload()...), nil
		}))
		until(t, "the fallback", func() bool { return x.theirs.Load().fallback })
		if got, err := x.Call(background, "anything", []byte("!")); string(got) != "anything!" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		big := fill(200<<10, 1)
		if got, err := x.Call(background, "anything", big); string(got) != "anything"+string(big) || err != nil {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if got, err := x.Call(background, "late", nil); string(got) != "late " || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		m.Fallback(nil) // what was announced stays: the other side is asked, and refuses
		_, err := x.Call(background, "anything", nil)
		wantCode(t, err, Unimplemented, true)
	})
}

func TestCallsToASideThatServesNothing(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		x, _ := pair(t, transport, nil, nil)
		_, err := x.Call(background, "echo", nil)
		wantCode(t, err, Unimplemented, true)
	})
}

func TestHandlerErrorsReachTheCaller(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		var result error
		m := NewMux()
		m.HandleFunc("fail", func(context.Context, []byte) ([]byte, error) { return []byte("dropped"), result })
		x, y := pair(t, transport, nil, serves(m))
		typed := &Error{Code: 300, Message: "the text", Detail: []byte("the detail\x00\xff")}
		for _, test := range []struct {
			err    error
			code   Code
			text   string
			detail []byte
			is     error
		}{
			{errors.New("plain text"), Unknown, "plain text", nil, nil},
			{typed, 300, "the text", typed.Detail, nil},
			{fmt.Errorf("wrapped: %w", typed), 300, "wrapped: ", typed.Detail, nil},
			{&Error{Code: NotFound, Message: "none", Err: fs.ErrNotExist}, NotFound, "file does not exist", nil, nil},
			{&Error{Code: OK, Message: "never a success"}, Unknown, "never a success", nil, nil},
			{context.Canceled, Canceled, "context canceled", nil, context.Canceled},
			{fmt.Errorf("deep: %w", context.DeadlineExceeded), DeadlineExceeded, "deep: ", nil, context.DeadlineExceeded},
			{&Error{Code: 65535, Message: strings.Repeat("t", 100<<10)}, 65535, "tttt", nil, nil},
			{&Error{Code: 400, Message: "m", Detail: fill(100<<10, 1)}, 400, "m", nil, nil},
		} {
			result = test.err
			call := &Call{Method: "fail", Reply: []byte("kept")}
			err := x.Do(background, call)
			var e *Error
			if !errors.As(err, &e) || e.Code != test.code || NotRun(err) {
				t.Errorf("%.80v: got %.200v", test.err, err)
				continue
			}
			if !strings.Contains(e.Message, test.text) || test.detail != nil && !bytes.Equal(e.Detail, test.detail) {
				t.Errorf("%.80v: got message %.200q, detail %.100q", test.err, e.Message, e.Detail)
			}
			for _, is := range []error{context.Canceled, context.DeadlineExceeded} {
				if errors.Is(err, is) != (is == test.is) {
					t.Errorf("%.80v: errors.Is(err, %v) is %v", test.err, is, test.is != is)
				}
			}
			if string(call.Reply) != "kept" {
				t.Errorf("%.80v: the reply is now %q", test.err, call.Reply)
			}
		}
		accounts(t, x, y)
	})
}

// A handler has run, whatever it says of a call that it made itself.
func TestRelayedRefusalsMayHaveRun(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		inner, _ := pair(t, transport, nil, serves(echoMux(nil)))
		m := NewMux()
		m.HandleFunc("relay", func(ctx context.Context, method []byte) ([]byte, error) {
			if string(method) == "echo" {
				gone, cancel := context.WithCancel(ctx)
				cancel()
				ctx = gone
			}
			reply, err := inner.Call(ctx, string(method), nil)
			if !NotRun(err) {
				t.Errorf("the inner call: %v, NotRun %v", err, NotRun(err))
			}
			return reply, err
		})
		x, y := pair(t, transport, nil, serves(m))
		for method, code := range map[string]Code{"no such": Unimplemented, "echo": Canceled} {
			_, err := x.Call(background, "relay", []byte(method))
			wantCode(t, err, code, false)
		}
		accounts(t, x, y)
	})
}

// Who turns a request away says so to the caller, and to nobody behind it.
func TestRefusedRequestsWereNotRun(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		refusal := Refused(ResourceExhausted, "full")
		refusal.Detail = []byte("retry after lunch")
		m := NewMux()
		m.HandleFunc("full", func(context.Context, []byte) ([]byte, error) { return []byte("dropped"), refusal })
		m.HandleFunc("wrapped", func(context.Context, []byte) ([]byte, error) { return nil, fmt.Errorf("gate: %w", refusal) })
		m.HandleFunc("run", func(context.Context, []byte) ([]byte, error) {
			return nil, &Error{Code: ResourceExhausted, Message: "full", Err: refusal} // full, but not of this request
		})
		x, y := pair(t, transport, nil, serves(m))
		relay := NewMux()
		relay.Fallback(HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			_, err := x.Call(r.Context(), r.Method(), nil)
			return reply, err
		}))
		far, _ := pair(t, transport, nil, serves(relay))
		for method, notRun := range map[string]bool{"full": true, "wrapped": true, "run": false} {
			_, err := x.Call(background, method, nil)
			wantCode(t, err, ResourceExhausted, notRun)
			var e *Error
			if !errors.As(err, &e) || !strings.Contains(e.Message, "full") || notRun && string(e.Detail) != "retry after lunch" {
				t.Errorf("%s: %v, detail %q", method, err, e.Detail)
			}
			_, err = far.Call(background, method, nil)
			wantCode(t, err, ResourceExhausted, false)
		}
		if !NotRun(refusal) || CodeOf(refusal) != ResourceExhausted {
			t.Errorf("%v on the refusing side: NotRun %v", refusal, NotRun(refusal))
		}
		accounts(t, x, y)
	})
}

func TestSlotLimitMakesCallersWait(t *testing.T) {
	t.Parallel()
	overTransports(t, func(t *testing.T, transport string) {
		for _, limit := range []int{1, 2} {
			t.Run(fmt.Sprint(limit), func(t *testing.T) {
				unblock := make(chan struct{})
				m := echoMux(unblock)
				var running, most atomic.Int32
				m.HandleFunc("count", func(context.Context, []byte) ([]byte, error) {
					n := running.Add(1)
					for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
					}
					running.Add(-1)
					return nil, nil
				})
				x, y := pair(t, transport, nil, &Config{Mux: m, Limits: Limits{MaxCalls: limit}})
				var wg sync.WaitGroup
				for range limit {
					wg.Go(func() {
						if _, err := x.Call(background, "block", nil); err != nil {
							t.Error(err)
						}
					})
				}
				until(t, "the slots to be taken", func() bool { return y.servingCount.Load() == int64(limit) })

				// Who waits for a slot does so under the context, and was not sent.
				ctx, cancel := context.WithTimeout(background, 20*time.Millisecond)
				_, err := x.Call(ctx, "echo", nil)
				cancel()
				wantCode(t, err, DeadlineExceeded, true)
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("not the context's error: %v", err)
				}
				for range 100 {
					wg.Go(func() {
						if _, err := x.Call(background, "count", nil); err != nil {
							t.Error(err)
						}
					})
				}
				until(t, "callers to wait", func() bool {
					x.out.Lock()
					defer x.out.Unlock()
					return !x.admit.Empty()
				})
				close(unblock)
				wg.Wait()
				if n := most.Load(); int(n) > limit {
					t.Errorf("%d calls at the same time", n)
				}
				accounts(t, x, y)
			})
		}
	})
}

func TestRequestBytesMakeBulkCallersWait(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		const message = 1 << 20
		m := echoMux(nil)
		var now, most atomic.Int64
		m.Handle("hold", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			n := now.Add(int64(len(r.Payload())))
			for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
			}
			time.Sleep(time.Millisecond) // hold the memory for a while; nothing waits for it
			now.Add(-int64(len(r.Payload())))
			_, err := unseal(r.Payload())
			return reply, err
		}))
		x, y := pair(t, transport, nil, &Config{Mux: m, Limits: Limits{MaxMessage: message, MaxRequestBytes: message}})
		var wg sync.WaitGroup
		for i := range 24 {
			wg.Go(func() {
				size := []int{message, 400 << 10, 100, 64 << 10}[i%4]
				if _, err := x.Call(background, "hold", sealed(size, uint64(i))); err != nil {
					t.Errorf("%d bytes: %v", size, err)
				}
			})
		}
		wg.Wait()
		if n := most.Load(); n > message {
			t.Errorf("handlers held %d bytes, MaxRequestBytes is %d", n, message)
		}
		accounts(t, x, y)
	})
}

func TestHandlersCallBackBothWaysToDepthFive(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		nested := func() *Mux {
			m := NewMux()
			m.Handle("down", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
				b := r.Payload()
				if b[0] == 0 {
					return append(reply, b[1:]...), nil
				}
				inner := append([]byte{b[0] - 1}, b[1:]...)
				up, err := r.Conn().Call(r.Context(), "down", inner)
				if err == nil && !bytes.Equal(r.Payload()[1:], up) {
					err = fmt.Errorf("level %d: the payload changed while the handler waited", b[0])
				}
				return append(reply, up...), err
			}))
			return m
		}
		x, y := pair(t, transport, serves(nested()), serves(nested()))
		var wg sync.WaitGroup
		for i := range 16 {
			c := []*Conn{x, y}[i%2]
			wg.Go(func() {
				for k := range 10 {
					body := fill(10+1000*k, uint64(i*100+k))
					got, err := c.Call(background, "down", append([]byte{5}, body...))
					if err != nil || !bytes.Equal(got, body) {
						t.Errorf("%d bytes of %d, error %v", len(got), len(body), err)
					}
				}
			})
		}
		wg.Wait()
		accounts(t, x, y)
	})
}

func TestHandlerCallsAnotherConnection(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		far, farther := pair(t, transport, nil, serves(echoMux(nil)))
		m := NewMux()
		m.Handle("relay", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			call := &Call{Method: "check", Request: r.Payload(), Reply: reply}
			err := far.Do(r.Context(), call)
			return call.Reply, err
		}))
		x, y := pair(t, transport, nil, serves(m))
		for i := range 200 { // one after the other: both read their own replies
			req := sealed(50+i, uint64(i))
			if got, err := x.Call(background, "relay", req); err != nil || !bytes.Equal(got, req) {
				t.Fatalf("call %d: %d bytes, %v", i, len(got), err)
			}
		}
		var wg sync.WaitGroup
		for i := range 32 {
			wg.Go(func() {
				req := sealed(50+i*1000, uint64(i))
				if got, err := x.Call(background, "relay", req); err != nil || !bytes.Equal(got, req) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			})
		}
		wg.Wait()
		accounts(t, x, y, far, farther)
	})
}

func TestCallsAfterCloseWereNotRun(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		x, y := pair(t, transport, serves(echoMux(nil)), serves(echoMux(nil)))
		if err := x.Close(); err != nil {
			t.Error(err)
		}
		receive(t, "the other side's end", y.Done())
		for _, c := range []*Conn{x, y} {
			for _, err := range []error{checkCall(background, c, 10, 1), checkCall(background, c, 1<<20, 1), c.Notify(background, "echo", nil)} {
				if err == nil || !NotRun(err) {
					t.Errorf("error %v, NotRun %v", err, NotRun(err))
				}
			}
		}
		if err := checkCall(background, x, 10, 1); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v is not net.ErrClosed", err)
		}
	})
}

// A request of MaxMessage does not wait, when nothing else was asked for, until a
// stream has ended, with all other calls behind it.
func TestLargestRequestBesideAnOpenStream(t *testing.T) {
	const most = 129 << 20
	m := NewMux()
	m.HandleFunc("take", func(context.Context, []byte) ([]byte, error) { return nil, nil })
	m.HandleStream("open", func(s *Stream) error { <-s.Context().Done(); return nil })
	cfg := serves(m)
	cfg.Limits.MaxMessage = most
	x, _ := pair(t, "unix", nil, cfg)
	s := openStream(t, x, "open")
	defer s.Close()
	ctx, cancel := context.WithTimeout(background, adversaryPatience)
	defer cancel()
	if _, err := x.Call(ctx, "take", make([]byte, most)); err != nil {
		t.Error(err)
	}
}
