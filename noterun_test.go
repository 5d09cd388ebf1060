package plugwire

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"
)

// TestStretchesAreTakenOver sends one-way messages in runs of one method, which
// come in stretches, and has some of their handlers taken over, panic, or end their
// goroutine: whatever becomes of one, the others run once each and in order.
func TestStretchesAreTakenOver(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		var next, taken, within atomic.Uint64
		m := NewMux()
		handler := HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			seed, err := unseal(r.Payload())
			if err != nil {
				t.Error(err)
			}
			if want := next.Add(1) - 1; seed != want {
				t.Errorf("one-way message %d came as number %d", seed, want)
			}
			if rd := r.reader; rd != nil && seed%37 == 5 {
				if rd.begun > 1 && rd.mark.stretch.most > rd.begun {
					within.Add(1)
				}
				taken.Add(1)
				takeOverNow(r)
			}
			switch seed % 101 {
			case 17, 19:
				panic("on purpose")
			case 23, 24:
				runtime.Goexit()
			case 42:
				r.Context() // is made for this message alone
			}
			return reply, nil
		})
		methods := make([]string, 80) // each is caught only a few times before it goes to workers
		for i := range methods {
			methods[i] = fmt.Sprint("note", i)
			m.Handle(methods[i], handler)
		}
		x, y := pair(t, transport, nil, &Config{Mux: m, Limits: Limits{OneWayWindow: 64 << 10}})
		until(t, "the table", func() bool { return x.Methods() != nil })
		rng := rand.New(rand.NewPCG(7, 8))
		sent := uint64(0)
		for _, method := range methods {
			for range 1 + rng.IntN(200) {
				if err := x.Notify(background, method, sealed(12+rng.IntN(60), sent)); err != nil {
					t.Fatal(err)
				}
				sent++
			}
		}
		if err := x.Flush(background); err != nil || next.Load() != sent {
			t.Errorf("%d of %d one-way messages handled, %v", next.Load(), sent, err)
		}
		accounts(t, x, y)
		if taken.Load() == 0 || within.Load() == 0 {
			t.Errorf("%d handlers were taken over, %d of them within a stretch", taken.Load(), within.Load())
		}
	})
}

// TestWhatFollowsAStretchIsNotHeldUp: a handler that waits within a stretch holds
// up the messages behind it, and nothing else.
func TestWhatFollowsAStretchIsNotHeldUp(t *testing.T) {
	watchdog(t)
	entered, unblock := make(chan struct{}), make(chan struct{})
	var handled atomic.Int64
	m := echoMux(nil)
	m.HandleFunc("note", func(_ context.Context, b []byte) ([]byte, error) {
		if handled.Add(1) == 10 {
			close(entered)
			<-unblock
		}
		return nil, nil
	})
	x, y := pair(t, "unix", nil, serves(m))
	until(t, "the table", func() bool { return x.Methods() != nil })
	for range 100 {
		if err := x.Notify(background, "note", []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	<-entered
	parallelChecks(t, x, 100)
	if n := handled.Load(); n != 10 {
		t.Errorf("%d handlers ran before the tenth returned", n)
	}
	close(unblock)
	if err := x.Flush(background); err != nil || handled.Load() != 100 {
		t.Errorf("%d of 100 one-way messages handled, %v", handled.Load(), err)
	}
	accounts(t, x, y)
}

// TestCreditComesBackWithinAStretch: while a handler waits, those before it in its
// stretch give the sender room once they are a quarter of the window, for it may be
// what the sender does next that the handler waits for.
func TestCreditComesBackWithinAStretch(t *testing.T) {
	watchdog(t)
	const window = 64 << 10
	for _, test := range []struct{ size, waits, sends int }{
		{0, 512, 1024 + 512 - 256},
		{0, 1000, 1024 + 1000 - 256},
		{0, 1021, 1024 + 1021 - 256},
		{36, 165, 655 + 1}, // 164 handled are 16400, and a quarter 16384; stretches end at 16000 and at 17000
		{4, 256, 963 + 1},  // 255 handled are 17340; without a share of the window they would end at 15232 and at 17408
	} {
		unblock := make(chan struct{})
		var handled atomic.Int64
		m := echoMux(nil)
		m.HandleFunc("note", func(context.Context, []byte) ([]byte, error) {
			if handled.Add(1) == int64(test.waits) {
				<-unblock
			}
			return nil, nil
		})
		x, y := pair(t, "unix", nil, &Config{Mux: m, Limits: Limits{OneWayWindow: window}})
		until(t, "the table", func() bool { return x.Methods() != nil })
		for i := range test.sends {
			if err := x.Notify(background, "note", make([]byte, test.size)); err != nil {
				t.Fatalf("message %d: %v", i, err)
			}
		}
		close(unblock)
		if err := x.Flush(background); err != nil {
			t.Error(err)
		}
		accounts(t, x, y)
	}
}

// TestCloseWithinAStretch: no handler begins after Close has returned, but when it
// is the other side that has closed, all that it sent is handled.
func TestCloseWithinAStretch(t *testing.T) {
	const waits, all = 10, 30
	for _, who := range []string{"handler", "this side", "other side"} {
		t.Run(who, func(t *testing.T) {
			watchdog(t)
			entered, unblock := make(chan struct{}), make(chan struct{})
			var handled atomic.Int64
			m := echoMux(nil)
			m.Handle("note", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
				switch {
				case handled.Add(1) != waits:
				case who == "handler":
					r.Conn().Close()
				default:
					close(entered)
					<-unblock
				}
				return reply, nil
			}))
			x, y := pair(t, "unix", nil, serves(m))
			until(t, "the table", func() bool { return x.Methods() != nil })
			for range all {
				if err := x.Notify(background, "note", nil); err != nil {
					t.Fatal(err)
				}
			}
			want := int64(waits)
			switch who {
			case "this side":
				<-entered
				y.Close()
				close(unblock)
			case "other side":
				<-entered
				x.Close()
				until(t, "its end", y.ended.Load)
				close(unblock)
				want = all
			}
			<-y.Done()
			until(t, "the last handler", func() bool { return handled.Load() >= want && !y.oneWay.busy.Load() })
			if n := handled.Load(); n != want {
				t.Errorf("%d handlers ran, not %d", n, want)
			}
		})
	}
}

// TestContextOfAQueuedMessageEnds also when its handler ends its goroutine.
func TestContextOfAQueuedMessageEnds(t *testing.T) {
	watchdog(t)
	const all = 20
	contexts := make(chan context.Context, all)
	m := NewMux()
	m.Handle("note", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		takeOverNow(r)
		contexts <- r.Context()
		if len(contexts)%2 == 0 {
			runtime.Goexit()
		}
		return reply, nil
	}))
	x, _ := pair(t, "unix", nil, serves(m))
	until(t, "the table", func() bool { return x.Methods() != nil })
	for range all {
		if err := x.Notify(background, "note", nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.Flush(background); err != nil {
		t.Fatal(err)
	}
	for range all {
		if ctx := <-contexts; ctx.Err() == nil {
			t.Error("the context of a message outlives its handler")
		}
	}
}
