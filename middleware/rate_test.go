package middleware

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plugwire/plugwire"
)

// TestBucketGivesWhatTimeBrings tries calls at given times after the start.
func TestBucketGivesWhatTimeBrings(t *testing.T) {
	type try struct {
		at       time.Duration
		calls    int
		admitted int
	}
	ms := time.Millisecond
	for _, test := range []struct {
		rate  float64
		burst int
		tries []try
	}{
		{10, 1, []try{{0, 5, 1}, {99 * ms, 3, 0}, {100 * ms, 3, 1}, {150 * ms, 1, 0}, {210 * ms, 3, 1}, {10 * time.Second, 3, 1}}},
		{10, 4, []try{{0, 9, 4}, {50 * ms, 1, 0}, {250 * ms, 9, 2}, {300 * ms, 9, 1}, {time.Hour, 9, 4}}},
		{0.5, 2, []try{{0, 3, 2}, {1 * time.Second, 1, 0}, {2 * time.Second, 2, 1}, {3 * time.Second, 1, 0}}},
		{1e6, 1, []try{{0, 2, 1}, {time.Microsecond, 2, 1}, {time.Second, 2, 1}}},
		{1e12, 1000, []try{{0, 2000, 1000}, {time.Nanosecond, 2000, 1000}}},
		{math.SmallestNonzeroFloat64, 1, []try{{0, 2, 1}, {1000 * time.Hour, 2, 0}}},
		{math.MaxFloat64, 1, []try{{0, 2, 1}, {time.Hour, 2, 1}}},
	} {
		t.Run(fmt.Sprintf("%v per second, %d at once", test.rate, test.burst), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBucket(test.rate, test.burst)
				start := time.Now()
				for _, try := range test.tries {
					time.Sleep(time.Until(start.Add(try.at)))
					admitted := 0
					for range try.calls {
						wait, err := b.take(false)
						if err == nil {
							admitted++
						} else {
							wantError(t, err, plugwire.ResourceExhausted, true)
						}
						if wait != 0 {
							t.Errorf("a call has to wait for %v", wait)
						}
					}
					if admitted != try.admitted {
						t.Errorf("%d of %d calls admitted after %v, want %d", admitted, try.calls, try.at, try.admitted)
					}
				}
			})
		})
	}
}

// One-way messages take turns as time brings them, and calls get none of theirs.
func TestOneWayMessagesWaitForTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(10, 2)
		start := time.Now()
		var wg sync.WaitGroup
		var mu sync.Mutex
		var begun []time.Duration
		for range 5 {
			wait, err := b.take(true)
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				if wait > 0 {
					if err := b.await(background, wait); err != nil {
						t.Error(err)
					}
				}
				mu.Lock()
				begun = append(begun, time.Since(start).Round(time.Millisecond))
				mu.Unlock()
			})
		}
		time.Sleep(250 * time.Millisecond)
		if _, err := b.take(false); err == nil {
			t.Error("a call took what a message waits for")
		}
		wg.Wait()
		ms := time.Millisecond
		if got, want := fmt.Sprint(begun), fmt.Sprint([]time.Duration{0, 0, 100 * ms, 200 * ms, 300 * ms}); got != want {
			t.Errorf("begun at %v, want %v", got, want)
		}
		time.Sleep(101 * ms)
		if _, err := b.take(false); err != nil {
			t.Errorf("a call after the messages: %v", err)
		}
	})
}

func TestEndedWaitReturnsItsToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(1, 1)
		b.take(false)
		ctx, cancel := context.WithTimeout(background, 500*time.Millisecond)
		defer cancel()
		wait, err := b.take(true)
		if err != nil || wait != time.Second {
			t.Fatalf("%v, %v", wait, err)
		}
		wantError(t, b.await(ctx, wait), plugwire.DeadlineExceeded, true)
		time.Sleep(501 * time.Millisecond)
		if _, err := b.take(false); err != nil {
			t.Errorf("the token did not go back: %v", err)
		}
		// Centuries are waited for, or not at all, rather than overflow.
		b = newBucket(math.SmallestNonzeroFloat64, 1)
		b.take(true)
		if wait, err := b.take(true); wait != math.MaxInt64 || err != nil {
			t.Errorf("%v, %v", wait, err)
		}
	})
}

func TestRateLimitOverConnections(t *testing.T) {
	overTransports(t, func(t *testing.T, addr string) {
		var ran atomic.Int64
		mux := plugwire.NewMux()
		count := func(context.Context, []byte) ([]byte, error) { ran.Add(1); return nil, nil }
		mux.HandleFunc("a", count)
		mux.HandleFunc("b", count)
		const burst = 20
		mux.Use(RateLimit(1e-6, burst)) // nothing comes back while the test runs
		connect := serve(t, addr, mux, nil)
		conns := []*plugwire.Conn{connect(), connect()}
		good := 0
		for i := range 2 * burst {
			_, err := conns[i%2].Call(background, []string{"a", "b"}[i/2%2], nil)
			if err == nil {
				good++
			} else {
				wantError(t, err, plugwire.ResourceExhausted, true)
			}
		}
		if good != burst || ran.Load() != burst {
			t.Errorf("%d calls succeeded, %d ran, want %d", good, ran.Load(), burst)
		}
		// A one-way message waits, until its connection ends. The server counts it as
		// handled no sooner, and goes on with the calls of others.
		if err := conns[0].Notify(background, "a", nil); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(background, 20*time.Millisecond)
		defer cancel()
		if err := conns[0].Flush(ctx); plugwire.CodeOf(err) != plugwire.DeadlineExceeded {
			t.Errorf("Flush: %v", err)
		}
		conns[0].Close()
		_, err := conns[1].Call(background, "a", nil)
		wantError(t, err, plugwire.ResourceExhausted, true)
		if ran.Load() != burst {
			t.Errorf("%d handlers ran, want %d", ran.Load(), burst)
		}
	})
}

// None of the one-way messages that go slower than they came is lost.
func TestRateLimitSlowsOneWayMessages(t *testing.T) {
	overTransports(t, func(t *testing.T, addr string) {
		var ran atomic.Int64
		mux := plugwire.NewMux()
		mux.HandleFunc("note", func(context.Context, []byte) ([]byte, error) { ran.Add(1); return nil, nil })
		mux.Use(RateLimit(500, 10))
		c := serve(t, addr, mux, nil)()
		const notes = 60
		start := time.Now()
		for range notes {
			if err := c.Notify(background, "note", nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Flush(background); err != nil {
			t.Fatal(err)
		}
		if ran.Load() != notes {
			t.Errorf("%d of %d one-way messages were handled", ran.Load(), notes)
		}
		if d := time.Since(start); d < 100*time.Millisecond-time.Millisecond {
			t.Errorf("%d messages in %v, at 10 and 500 per second", notes, d)
		}
	})
}

func TestRateLimitAllocatesNothing(t *testing.T) {
	h, r := RateLimit(1e9, 1<<30)(empty), new(plugwire.Request)
	noAllocations(t, "with tokens left", func() { h.ServeCall(r, nil) })
	b := newBucket(1e-6, 1)
	b.take(false)
	noAllocations(t, "refused", func() { b.take(false) })
}
