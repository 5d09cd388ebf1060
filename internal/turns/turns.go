// Package turns lets a few at a time do what takes a processor, the newest first.
package turns

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"time"
)

// Turns hands out turns. Its zero value is ready.
type Turns struct {
	// Most is how many turns there are; 0 means GOMAXPROCS. Those who have waited for
	// long share half of them, rounded up: what a crowd has left behind is worked off
	// beside everything else. While all processors compute, the scheduler looks at
	// the network every 10 ms only.
	Most int

	mu      sync.Mutex
	taken   int
	waiting []waiter // by rank
}

// A waiter is one who waits for a turn.
type waiter struct {
	rank  uint64
	since time.Time
	come  chan struct{} // closed when its turn has come
}

// long is how long one has waited who has waited for long. Beside a crowd that is
// too large for the processors it is the newest that have their turn, within less.
const long = 3 * time.Millisecond

// Take waits for a turn, which Give ends, or for ctx, whose error it returns. Of
// those who wait it is the turn of the one with the highest rank. Who has a turn
// goes behind all goroutines that can run already: they do not take long.
func (t *Turns) Take(ctx context.Context, rank uint64) error {
	err := t.take(ctx, rank)
	if err == nil {
		runtime.Gosched()
	}
	return err
}

func (t *Turns) take(ctx context.Context, rank uint64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t.mu.Lock()
	if most := t.most(); t.taken < (most+1)/2 || t.taken < most && len(t.waiting) == 0 {
		t.taken++
		t.mu.Unlock()
		return nil
	}
	w := waiter{rank, time.Now(), make(chan struct{})}
	i, _ := slices.BinarySearchFunc(t.waiting, rank, func(w waiter, rank uint64) int {
		if w.rank > rank {
			return 1
		}
		return -1
	})
	t.waiting = slices.Insert(t.waiting, i, w)
	t.mu.Unlock()
	select {
	case <-w.come:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	i = slices.IndexFunc(t.waiting, func(v waiter) bool { return v.come == w.come })
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
	for len(t.waiting) > 0 {
		last := len(t.waiting) - 1
		most := t.most()
		if time.Since(t.waiting[last].since) > long {
			most = (most + 1) / 2
		}
		if t.taken >= most {
			return
		}
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
	return runtime.GOMAXPROCS(0)
}
