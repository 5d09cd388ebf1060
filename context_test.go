package plugwire

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

// TestContextsOutliveTheirHandlers: what user code keeps of a request's context
// ends with the handler, whatever was derived from it, and is never used again.
func TestContextsOutliveTheirHandlers(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		var mu sync.Mutex
		var kept []context.Context
		fired := make(chan struct{}, 10000)
		m := NewMux()
		m.Handle("keep", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			ctx := r.Context()
			if ctx.Err() != nil {
				t.Error("the context has ended before the handler returns")
			}
			info, ok := InfoFromContext(ctx)
			if !ok || info.Method != "keep" || info.Conn != r.Conn() || info.Peer != r.Peer() {
				t.Errorf("InfoFromContext: %+v, %v", info, ok)
			}
			with, cancel := context.WithCancel(ctx)
			_ = cancel // never called: nothing may leak all the same
			timeout, cancel2 := context.WithTimeout(with, time.Hour)
			_ = cancel2
			value := context.WithValue(timeout, infoKey{}, nil)
			if _, ok := InfoFromContext(timeout); !ok {
				t.Error("no Info in a derived context")
			}
			context.AfterFunc(ctx, func() { fired <- struct{}{} })
			stopped := context.AfterFunc(ctx, func() { t.Error("a stopped AfterFunc ran") })
			if !stopped() {
				t.Error("AfterFunc could not be stopped")
			}
			mu.Lock()
			kept = append(kept, ctx, with, timeout, value)
			mu.Unlock()
			return reply, nil
		}))
		x, y := pair(t, transport, nil, serves(m))
		const calls = 100
		deadline, cancel := context.WithTimeout(background, time.Minute)
		defer cancel()
		for i := range calls {
			ctx := background
			if i%2 == 1 {
				ctx = deadline
			}
			if _, err := x.Call(ctx, "keep", nil); err != nil {
				t.Fatal(err)
			}
			if err := x.Notify(background, "keep", nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := x.Flush(background); err != nil {
			t.Fatal(err)
		}
		for range 2 * calls {
			receive(t, "AfterFunc", fired)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, ctx := range kept {
			receive(t, "the end of a kept context", ctx.Done())
			if !errors.Is(ctx.Err(), context.Canceled) {
				t.Errorf("a kept context ended with %v", ctx.Err())
			}
		}
		accounts(t, x, y)
	})
}

func TestContextOfAHandlerEndsWithTheConnection(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		for _, oneWay := range []bool{false, true} {
			entered, ended := make(chan struct{}), make(chan error, 1)
			m := NewMux()
			m.HandleFunc("wait", func(ctx context.Context, _ []byte) ([]byte, error) {
				close(entered)
				<-ctx.Done()
				ended <- ctx.Err()
				return nil, nil
			})
			x, y := pair(t, transport, nil, serves(m))
			if oneWay {
				if err := x.Notify(background, "wait", nil); err != nil {
					t.Fatal(err)
				}
			} else {
				go x.Call(background, "wait", nil)
			}
			receive(t, "the handler", entered)
			closeBoth(x, y)
			if err := receive(t, "the context's end", ended); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	})
}

// TestADeadlineThatHasPassedDoesNotRunTheHandler: the other side may have sent
// it late, or the call may have waited here.
func TestADeadlineThatHasPassedDoesNotRunTheHandler(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		ran := make(chan struct{}, 1)
		m := NewMux()
		m.HandleFunc("run", func(context.Context, []byte) ([]byte, error) { ran <- struct{}{}; return nil, nil })
		_, peer := scripted(t, transport, serves(m))
		peer.sendFrame(FrameHeader{Type: FrameCall, Flags: FlagDeadline, Code: 1, ID: 1}, make([]byte, 8))
		h, _ := peer.expect(FrameError)
		if Code(h.Code) != DeadlineExceeded || h.Flags&FlagNotRun == 0 {
			t.Errorf("code %v, flags %#x", Code(h.Code), h.Flags)
		}
		// In pieces, and the time passes meanwhile.
		b := append([]byte{5, 0, 0, 0}, 0, 0, 16, 0, 0, 0, 0, 0) // 5 bytes within a millisecond
		peer.sendFrame(FrameHeader{Type: FrameCall, Flags: FlagDeadline | FlagBegin | FlagMore, Code: 1, ID: 1}, append(b, 'a'))
		time.Sleep(3 * time.Millisecond)
		peer.sendFrame(FrameHeader{Type: FrameCall, ID: 1}, []byte("bcde"))
		if h, _ = peer.expect(FrameError); Code(h.Code) != DeadlineExceeded || h.Flags&FlagNotRun == 0 {
			t.Errorf("code %v, flags %#x", Code(h.Code), h.Flags)
		}
		// A call that was cancelled before its request was complete need not run.
		peer.sendFrame(FrameHeader{Type: FrameCall, Flags: FlagBegin | FlagMore, Code: 1, ID: 1}, []byte{5, 0, 0, 0, 'a'})
		peer.sendFrame(FrameHeader{Type: FrameCancel, ID: 1}, nil)
		peer.sendFrame(FrameHeader{Type: FrameCall, ID: 1}, []byte("bcde"))
		if h, _ = peer.expect(FrameError); Code(h.Code) != Canceled || h.Flags&FlagNotRun == 0 {
			t.Errorf("code %v, flags %#x", Code(h.Code), h.Flags)
		}
		select {
		case <-ran:
			t.Error("the handler ran")
		default:
		}
	})
}
