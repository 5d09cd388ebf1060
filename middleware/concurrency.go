package middleware

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/plugwire/plugwire"
)

// ConcurrencyLimit returns middleware that has at most n handlers run at once,
// over all connections. Beyond that, up to queue calls wait for their turn, first
// come first served, until their context ends; negative is none. Further calls
// are refused at once with code ResourceExhausted. Whether refused or ended while
// they waited (Canceled, DeadlineExceeded), plugwire.NotRun is true of the error.
//
// One-way messages over the limit wait in the same line, as the package says.
// They do not count in queue: of each connection at most one waits here, so their
// bound is the server's Limits.MaxConns.
//
// A handler that panics or ends its goroutine frees its place. One that waits for
// another request under the same limit (by calling back to somebody who calls
// here) can wait for itself when all places are taken: give the other a limit of
// its own. ConcurrencyLimit panics when n is less than 1.
func ConcurrencyLimit(n, queue int) func(plugwire.Handler) plugwire.Handler {
	if n < 1 {
		panic(fmt.Sprintf("plugwire: ConcurrencyLimit(%d, %d): no handler could run", n, queue))
	}
	g := newGate(n, queue)
	return func(next plugwire.Handler) plugwire.Handler { return &limited{gate: g, next: next} }
}

type limited struct {
	gate *gate
	next plugwire.Handler
}

// ServeCall implements plugwire.Handler.
func (h *limited) ServeCall(r *plugwire.Request, reply []byte) ([]byte, error) {
	if !h.gate.tryEnter() {
		if err := h.gate.enter(r.OneWay(), r.Context); err != nil {
			return reply, err
		}
	}
	defer h.gate.leave() // also when the handler does not return
	return h.next.ServeCall(r, reply)
}

// gate is the places of a ConcurrencyLimit.
type gate struct {
	// places holds a token for each handler that runs. Who waits does so in
	// sending one; the runtime serves senders in their order, and who comes later
	// finds the channel full as long as anybody waits.
	places  chan struct{}
	queue   int64
	waiting atomic.Int64 // calls only; never more than queue
	full    error
}

func newGate(n, queue int) *gate {
	queue = max(queue, 0)
	return &gate{
		places: make(chan struct{}, n),
		queue:  int64(queue),
		full:   plugwire.Refused(plugwire.ResourceExhausted, fmt.Sprintf("ConcurrencyLimit: %d requests run and %d wait already", n, queue)),
	}
}

// tryEnter takes a place if one is free.
func (g *gate) tryEnter() bool {
	select {
	case g.places <- struct{}{}:
		return true
	default:
		return false
	}
}

// enter takes a place, waiting for it if there is room to wait. The context is
// asked for only then: refusing must stay cheap.
func (g *gate) enter(oneWay bool, context func() context.Context) error {
	if !oneWay {
		if !g.join() {
			return g.full
		}
		defer g.waiting.Add(-1)
	}
	ctx := context()
	select {
	case g.places <- struct{}{}:
	case <-ctx.Done():
		return refusedBy(ctx, "its turn")
	}
	if !oneWay && ctx.Err() != nil { // both happened: nobody waits for the reply
		g.leave()
		return refusedBy(ctx, "its turn")
	}
	return nil
}

// join counts a call that is going to wait, unless as many as may do.
func (g *gate) join() bool {
	for {
		n := g.waiting.Load()
		if n >= g.queue {
			return false
		}
		if g.waiting.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (g *gate) leave() { <-g.places }

// refusedBy is the error of a request whose context ended while it waited for something.
func refusedBy(ctx context.Context, what string) error {
	err := ctx.Err()
	return plugwire.Refused(plugwire.CodeOf(err), fmt.Sprintf("%v while the request waited for %s", err, what))
}
