package plugwire

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Messages of all sizes come in order and whole, over take-overs, panics, Goexit,
// contexts and a fallback, beside calls that use the same buffers.
func TestQueuedMessagesKeepContentAndOrder(t *testing.T) {
	messages := longRun(4000, 20_000)
	overTransports(t, func(t *testing.T, transport string) {
		var next atomic.Int64
		var bad atomic.Value
		h := HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			seed, err := unseal(r.Payload())
			if err != nil {
				bad.CompareAndSwap(nil, err.Error())
			}
			if n := next.Load(); uint64(n) != seed {
				bad.CompareAndSwap(nil, fmt.Sprintf("%d after %d", seed, n))
			}
			switch {
			case seed%97 == 1:
				takeOverNow(r)
			case seed%1009 == 2:
				time.Sleep(3 * time.Millisecond)
			}
			if seed%5 == 0 {
				r.SetContext(context.WithValue(r.Context(), t, 1))
			}
			if _, err := unseal(r.Payload()); err != nil {
				bad.CompareAndSwap(nil, "after: "+err.Error())
			}
			next.Add(1)
			switch {
			case seed%211 == 3:
				panic("x")
			case seed%307 == 4:
				runtime.Goexit()
			}
			return nil, nil
		})
		m := echoMux(nil)
		m.Handle("a", h)
		m.Handle("b", h)
		m.Fallback(h)
		x, _ := pair(t, transport, nil, serves(m))
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for n := i; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					size := []int{5, 100, 300, 5000, 20000, 66000, 100_000, 300_000}[n%8]
					req := sealed(size, uint64(n))
					got, err := x.Call(background, "check", req)
					if err != nil || string(got) != string(req) {
						bad.CompareAndSwap(nil, fmt.Sprintf("check %v", err))
						return
					}
				}
			})
		}
		for i := range messages {
			size := i % 300
			switch {
			case i%701 == 0:
				size = 200_000
			case i%53 == 0:
				size = 60000 + i%9000
			case i%31 == 0:
				size = 16300 + i%100
			}
			if i == 1000 {
				size = 1_500_000
			}
			name := []string{"a", "a", "a", "a", "a", "b", "c", "other"}[i/40%8]
			if err := x.Notify(background, name, sealed(size, uint64(i))); err != nil {
				t.Fatal(err)
			}
		}
		if err := x.Flush(background); err != nil {
			t.Error(err)
		}
		close(stop)
		wg.Wait()
		if b := bad.Load(); b != nil {
			t.Error(b)
		}
		if n := next.Load(); n != int64(messages) {
			t.Errorf("%d handled", n)
		}
	})
}

// What came while there was a handler is handled by it.
func TestQueuedMessagesKeepTheirFallback(t *testing.T) {
	var old atomic.Int64
	in, unblock := make(chan struct{}, 1), make(chan struct{})
	m := NewMux()
	m.Fallback(HandlerFunc(func(r *Request, b []byte) ([]byte, error) {
		if old.Add(1) == 1 {
			in <- struct{}{}
			<-unblock
		}
		return nil, nil
	}))
	x, y := pair(t, "unix", nil, serves(m))
	for range 10 {
		if err := x.Notify(background, "any", []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	<-in
	until(t, "all received", func() bool {
		y.oneWay.mu.Lock()
		defer y.oneWay.mu.Unlock()
		return y.oneWay.waiting() == 9
	})
	m.Fallback(nil)
	close(unblock)
	if err := x.Flush(background); err != nil {
		t.Fatal(err)
	}
	if n := old.Load(); n != 10 {
		t.Errorf("%d of 10 messages that were received while there was a handler were handled", n)
	}
}

// Messages that wait do not hold the buffers that large calls are read into.
func TestQueuedMessagesPinNoLargeBuffers(t *testing.T) {
	unblock := make(chan struct{})
	m := echoMux(nil)
	m.HandleFunc("big", func(context.Context, []byte) ([]byte, error) { time.Sleep(20 * time.Millisecond); return nil, nil })
	m.HandleFunc("note", func(context.Context, []byte) ([]byte, error) { <-unblock; return nil, nil })
	x, y := pair(t, "unix", nil, serves(m))
	defer close(unblock)
	if err := x.Notify(background, "note", nil); err != nil {
		t.Fatal(err)
	}
	sent := 0
	for range 2 {
		var wg sync.WaitGroup
		for range 14 {
			wg.Go(func() { x.Call(background, "big", make([]byte, 4<<20)) })
		}
		wg.Wait()
		for range 13 {
			if err := x.Notify(background, "note", make([]byte, 76<<10)); err != nil {
				t.Fatal(err)
			}
			sent += 76 << 10
		}
		if _, err := x.Ping(background); err != nil {
			t.Fatal(err)
		}
	}
	held := 0
	y.oneWay.mu.Lock()
	for _, q := range y.oneWay.queue {
		held += cap(q.packed)
	}
	y.oneWay.mu.Unlock()
	if held > 4*sent {
		t.Errorf("%d KiB of queued messages hold %d KiB", sent>>10, held>>10)
	}
}

func TestQueuedMessagesAllocateNothingEach(t *testing.T) {
	m := &method{name: "a", number: 1}
	var q []notes
	payload := make([]byte, 10)
	n := testing.AllocsPerRun(1000, func() {
		q = addNote(q, note{method: m, payload: payload})
	})
	if n > 0.5 {
		t.Errorf("%v allocations for each queued message", n)
	}
}
