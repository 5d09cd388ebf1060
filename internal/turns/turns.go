// Package turns lets a few at a time do what takes a processor, the newest first.
package turns

import (
	"context"
	"runtime"
	"slices"
	"sync"
)

// Turns hands out turns. Its zero value is ready.
type Turns struct {
	// Most is how many turns there are. 0 means half as many as GOMAXPROCS and at
	// least one: the rest of the processors is for everybody else, above all for
	// the scheduler to look at the network, which it seldom does while goroutines
	// that compute wait in its queues.
	Most int

	mu      sync.Mutex
	taken   int
	waiting []waiter // by rank
}

// A waiter is one who waits for a turn.
type waiter struct {
	rank uint64
	come chan struct{} // closed when its turn has come
}

// Take waits for a turn, which Give ends, or for ctx, whose error it returns. Of
// those who wait it is the turn of the one with the highest rank.
func (t *Turns) Take(ctx context.Context, rank uint64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t.mu.Lock()
	if t.taken < t.most() {
		t.taken++
		t.mu.Unlock()
		return nil
	}
	come := make(chan struct{})
	i, _ := slices.BinarySearchFunc(t.waiting, rank, func(w waiter, rank uint64) int {
		if w.rank > rank {
			return 1
		}
		return -1
	})
	t.waiting = slices.Insert(t.waiting, i, waiter{rank, come})
	t.mu.Unlock()
	select {
	case <-come:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	i = slices.IndexFunc(t.waiting, func(w waiter) bool { return w.come == come })
	if i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
	}
	t.mu.Unlock()
	if i < 0 { // its turn came meanwhile
		t.Give()
	}
	return ctx.Err()
}

// Give ends a turn.
func (t *Turns) Give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.taken--
	for t.taken < t.most() && len(t.waiting) > 0 {
		last := len(t.waiting) - 1
		close(t.waiting[last].come)
		t.waiting = slices.Delete(t.waiting, last, last+1)
		t.taken++
	}
}

// Waiting returns how many wait for a turn.
func (t *Turns) Waiting() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.waiting)
}

func (t *Turns) most() int {
	if t.Most > 0 {
		return t.Most
	}
	return max(1, runtime.GOMAXPROCS(0)/2)
}
