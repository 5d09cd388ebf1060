package turns

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// waits returns when n wait for a turn.
func waits(t *testing.T, turns *Turns, n int) {
	t.Helper()
	for range 10_000 {
		if turns.Waiting() == n {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("not %d of them wait", n)
}

// Turns go to the highest rank first, in whatever order they came.
func TestHighestRankFirst(t *testing.T) {
	turns := Turns{Most: 1}
	if err := turns.Take(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	const n = 50
	got := make(chan uint64, n)
	for i, rank := range rand.Perm(n) {
		go func() {
			if err := turns.Take(t.Context(), uint64(rank)); err != nil {
				t.Error(err)
			}
			got <- uint64(rank)
			turns.Give()
		}()
		waits(t, &turns, i+1)
	}
	turns.Give()
	for i := range n {
		if rank := <-got; rank != uint64(n-1-i) {
			t.Errorf("turn %d was of rank %d", i, rank)
		}
	}
}

// Who gives up leaves, loses no turn, and takes none once its context has ended.
func TestWhoGivesUp(t *testing.T) {
	turns := Turns{Most: 1}
	turns.Take(t.Context(), 0)
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 3)
	for rank := range uint64(cap(errs)) {
		go func() { errs <- turns.Take(ctx, rank) }()
	}
	waits(t, &turns, cap(errs))
	cancel()
	for range cap(errs) {
		if err := <-errs; err != context.Canceled {
			t.Errorf("%v", err)
		}
	}
	waits(t, &turns, 0)
	turns.Give()
	if err := turns.Take(ctx, 9); err != context.Canceled {
		t.Errorf("a turn after the context's end: %v", err)
	}
	if turns.taken != 0 {
		t.Errorf("%d turns are taken in the end", turns.taken)
	}
}

// Never do more than Most have a turn, and none is lost, whoever gives up when.
func TestNeverMoreThanMost(t *testing.T) {
	turns := Turns{Most: 2}
	var now, had, gaveUp atomic.Int32
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for i := range 500 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(200))*time.Microsecond)
				if turns.Take(ctx, uint64(g*i)) == nil {
					if n := now.Add(1); n > 2 {
						t.Errorf("%d have a turn", n)
					}
					for range rand.IntN(10_000) {
						_ = ctx.Err()
					}
					now.Add(-1)
					had.Add(1)
					turns.Give()
				} else {
					gaveUp.Add(1)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	t.Logf("%d had their turn, %d gave up", had.Load(), gaveUp.Load())
	if turns.taken != 0 || turns.Waiting() != 0 {
		t.Errorf("in the end %d are taken and %d wait", turns.taken, turns.Waiting())
	}
	if had.Load() == 0 || gaveUp.Load() == 0 {
		t.Error("this has tried only one of both")
	}
}

// Who has waited for long has half of the turns; all of them are for who has not.
func TestThoseWhoWaitedForLongShareHalf(t *testing.T) {
	turns := Turns{Most: 4}
	for range turns.Most {
		if err := turns.Take(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
	got := make(chan uint64, 8)
	wait := func(rank uint64) {
		n := turns.Waiting()
		go func() {
			if err := turns.Take(t.Context(), rank); err != nil {
				t.Error(err)
			}
			got <- rank
		}()
		waits(t, &turns, n+1)
	}
	wait(1)
	wait(2)
	time.Sleep(2 * long)
	turns.Give()
	turns.Give()
	if n := turns.Waiting(); n != 2 {
		t.Errorf("%d wait, with two turns taken of four", n)
	}
	turns.Give()
	if rank := <-got; rank != 2 {
		t.Errorf("the turn of %d", rank)
	}
	wait(3)
	turns.Give()
	if rank := <-got; rank != 3 {
		t.Errorf("the turn of %d, not of the newest", rank)
	}
	turns.Give()
	if rank := <-got; rank != 1 {
		t.Errorf("the turn of %d", rank)
	}
}

// By default there is a turn even on one processor.
func TestMostByDefault(t *testing.T) {
	var turns Turns
	if err := turns.Take(t.Context(), 0); err != nil {
		t.Error(err)
	}
	turns.Give()
}
