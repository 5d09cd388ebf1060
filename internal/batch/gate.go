package batch

import "context"

// A Gate is a queue of goroutines that wait, first come first served, for
// something that the Writer's lock guards. Its zero value is ready.
type Gate struct {
	queue []*waiter
}

type waiter struct {
	turn chan struct{} // holds one token: it may be your turn
}

// maxIdleWaiters bounds those that a Writer keeps for the next who wait.
const maxIdleWaiters = 64

// Empty reports whether nobody waits.
func (g *Gate) Empty() bool { return g.Len() == 0 }

// Len returns how many wait.
func (g *Gate) Len() int { return len(g.queue) }

func (g *Gate) signal() {
	if len(g.queue) > 0 {
		select {
		case g.queue[0].turn <- struct{}{}:
		default:
		}
	}
}

func (g *Gate) signalAll() {
	for _, w := range g.queue {
		select {
		case w.turn <- struct{}{}:
		default:
		}
	}
}

func (g *Gate) remove(w *waiter) {
	for i := range g.queue {
		if g.queue[i] == w {
			g.queue = append(g.queue[:i], g.queue[i+1:]...)
			break
		}
	}
	select { // a token that came too late must not stay for the next user
	case <-w.turn:
	default:
	}
}

// Open tells the first in the queue to look again. Called with the lock held.
func (w *Writer) Open(g *Gate) { g.signal() }

// Wait waits in g's queue until it is first and open() holds, which is asked
// under the lock. It is called and returns with the lock held; the error is the
// context's or the Writer's. It passes the turn to the next in the queue.
func (w *Writer) Wait(ctx context.Context, g *Gate, open func() bool) error {
	me := w.waiter()
	g.queue = append(g.queue, me)
	defer func() {
		g.remove(me)
		if len(w.waiters) < maxIdleWaiters {
			w.waiters = append(w.waiters, me)
		}
		g.signal()
	}()
	for {
		if w.err != nil {
			return w.err
		}
		if g.queue[0] == me && open() {
			return nil
		}
		w.mu.Unlock()
		select {
		case <-me.turn:
			w.mu.Lock()
		case <-ctx.Done():
			w.mu.Lock()
			return ctx.Err()
		}
	}
}

func (w *Writer) waiter() *waiter {
	last := len(w.waiters) - 1
	if last < 0 {
		return &waiter{make(chan struct{}, 1)}
	}
	me := w.waiters[last]
	w.waiters = w.waiters[:last]
	return me
}

// OpenAll tells everyone in the queue to look again. Called with the lock held.
func (w *Writer) OpenAll(g *Gate) { g.signalAll() }
