package plugwire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestDoAll(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		m := echoMux(nil)
		m.HandleFunc("fail", func(_ context.Context, b []byte) ([]byte, error) {
			return nil, &Error{Code: 500, Message: string(b)}
		})
		x, y := pair(t, transport, nil, &Config{Mux: m, Limits: Limits{MaxCalls: 20, MaxMessage: 2 << 20}})
		until(t, "the table", func() bool { return x.Methods() != nil })
		if err := x.DoAll(background, nil); err != nil {
			t.Errorf("none at all: %v", err)
		}
		for _, n := range []int{1, 2, 20, 21, 1000} { // also more than there are slots
			calls := make([]*Call, n)
			for i := range calls {
				calls[i] = &Call{Method: "check", Request: sealed(i%3000, uint64(i)), Reply: fmt.Appendf(nil, "%d:", i)}
				switch {
				case i%97 == 5:
					calls[i].Request = sealed(300<<10, uint64(i))
				case i%10 == 3:
					calls[i].Method = "fail"
				case i%10 == 4:
					calls[i].Method = "missing"
				case i == 18:
					calls[i].Request = make([]byte, 2<<20+1)
				}
				calls[i].Err = errors.New("stale")
			}
			err := x.DoAll(background, calls)
			var first error
			for i, c := range calls {
				if first == nil {
					first = c.Err
				}
				prefix := fmt.Appendf(nil, "%d:", i)
				switch {
				case c.Method == "fail":
					wantCode(t, c.Err, 500, false)
				case c.Method == "missing":
					wantCode(t, c.Err, Unimplemented, true)
				case len(c.Request) > 2<<20:
					wantCode(t, c.Err, ResourceExhausted, true)
				case c.Err != nil || !bytes.Equal(c.Reply, append(prefix, c.Request...)):
					t.Fatalf("call %d of %d: reply of %d bytes, %v", i, n, len(c.Reply), c.Err)
				}
				if c.Err != nil && !bytes.Equal(c.Reply, fmt.Appendf(nil, "%d:", i)) {
					t.Errorf("call %d failed and its reply is %d bytes", i, len(c.Reply))
				}
			}
			if err != first {
				t.Errorf("%d calls: error %v, the first is %v", n, err, first)
			}
			accounts(t, x, y)
		}
	})
}

func TestDoAllCancelledMidway(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		for _, limit := range []int{4, 100} { // the loop waits for slots, or for the endings
			x, y := pair(t, transport, nil, &Config{Mux: echoMux(nil), Limits: Limits{MaxCalls: limit}})
			until(t, "the table", func() bool { return x.Methods() != nil })
			ctx, cancel := context.WithCancel(background)
			calls := make([]*Call, 50)
			for i := range calls {
				method := "check"
				if i%2 == 1 {
					method = "block"
				}
				calls[i] = &Call{Method: method, Request: sealed(100+i, uint64(i))}
			}
			blocked := min(limit, len(calls)/2)
			go func() {
				for y.servingCount.Load() < int64(blocked) {
					time.Sleep(100 * time.Microsecond)
				}
				cancel()
			}()
			err := x.DoAll(ctx, calls)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
			for i, c := range calls {
				switch {
				case c.Err == nil && c.Method == "check":
					if !bytes.Equal(c.Reply, c.Request) {
						t.Errorf("call %d: reply of %d bytes", i, len(c.Reply))
					}
				case !errors.Is(c.Err, context.Canceled):
					t.Errorf("call %d, %s: %v", i, c.Method, c.Err)
				}
			}
			accounts(t, x, y)
			cancel()
		}
	})
}
