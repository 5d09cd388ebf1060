package plugwire

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plugwire/plugwire/internal/batch"
)

// Call is one call in the form that allocates nothing: the reply is appended to
// a slice of the caller's.
type Call struct {
	Method  string
	Request []byte // not touched after Do or DoAll returns
	Reply   []byte // the reply is appended to it; set it to [:0] to reuse
	Err     error  // how the call ended, for DoAll
}

// Caller is what makes calls.
type Caller interface {
	Call(ctx context.Context, method string, req []byte) ([]byte, error)
	Do(ctx context.Context, c *Call) error
	DoAll(ctx context.Context, calls []*Call) error
	Notify(ctx context.Context, method string, msg []byte) error
}

var _ Caller = (*Conn)(nil)

// outCall is a slot of this side's calls. The slot is free again when the
// ending has arrived and the last of its own frames has been sent.
type outCall struct {
	// pending is who waits for the ending; the reader takes it out when the
	// ending has arrived. gen is stored before it and tells whether pending
	// still means this call.
	pending atomic.Pointer[pendingCall]
	gen     uint64

	// Of a reply in several frames; they belong to the reading role.
	got, total int

	// Guarded by out's lock.
	cost     int    // of the request, against the other side's budget
	end      uint64 // where the request ends in the byte stream, once whole
	whole    bool   // no more frames of the request will be sent
	answered bool   // the ending has arrived, and only whole is missing
	cancel   bool   // CANCEL is to be sent
}

// pendingCall is a caller's end of a call. It is used again for other calls,
// with a new gen, unless the caller gave up waiting.
type pendingCall struct {
	state atomic.Uint64 // gen<<2 | one of the states
	gen   uint64
	call  *Call
	group *callGroup    // of DoAll, or nil
	done  chan struct{} // one token when the call has ended, without group
}

const (
	callWaiting    = iota // for the ending
	callDelivering        // somebody holds the right to write the result
	callAbandoned         // the caller has gone
)

// callGroup is what the calls of one DoAll share: one wake-up.
type callGroup struct {
	left atomic.Int64
	done chan struct{}
}

var pendingCalls = sync.Pool{New: func() any { return &pendingCall{done: make(chan struct{}, 1)} }}

func newPending(call *Call, group *callGroup) *pendingCall {
	p := pendingCalls.Get().(*pendingCall)
	p.gen++
	p.call, p.group = call, group
	p.state.Store(p.gen<<2 | callWaiting)
	return p
}

// recycle gives p back. Only its owner may, when nobody else holds its gen.
func (p *pendingCall) recycle() {
	p.call, p.group = nil, nil
	pendingCalls.Put(p)
}

// claim gets the right to write the result of the call that p was for when its gen was gen.
func (p *pendingCall) claim(gen uint64) bool {
	return p.state.CompareAndSwap(gen<<2|callWaiting, gen<<2|callDelivering)
}

// unclaim gives it back: more of the reply is to come.
func (p *pendingCall) unclaim(gen uint64) { p.state.Store(gen<<2 | callWaiting) }

// abandon ends the caller's interest. False means that the result is being written.
func (p *pendingCall) abandon() bool {
	return p.state.CompareAndSwap(p.gen<<2|callWaiting, p.gen<<2|callAbandoned)
}

// finish wakes the caller. Who calls it has claimed p, and lets go of it.
func (p *pendingCall) finish(err error) {
	p.call.Err = err
	if g := p.group; g != nil {
		if g.left.Add(-1) == 0 {
			g.done <- struct{}{}
		}
		return
	}
	p.done <- struct{}{}
}

// Call calls a method of the other side and returns its reply, which is the
// caller's. req is not touched after Call returns. When ctx ends, Call returns
// its error at once; the other side is told, and the connection and other calls
// go on. Every error says by NotRun whether the request can have run.
func (c *Conn) Call(ctx context.Context, method string, req []byte) ([]byte, error) {
	call := Call{Method: method, Request: req}
	if err := c.Do(ctx, &call); err != nil {
		return nil, err
	}
	return call.Reply, nil
}

// Do makes the call that c describes. It differs from Call in that the reply is
// appended to a slice of the caller's, so that nothing need be allocated.
func (c *Conn) Do(ctx context.Context, call *Call) error {
	p := newPending(call, nil)
	call.Err = nil
	c.out.Lock()
	id, err := c.begin(ctx, p)
	if err != nil { // before Turn, whose promise would not be kept
		c.out.Unlock()
		return c.begunWithError(ctx, p, id, err)
	}
	alone := c.expecting.Load() == 1
	turn := c.out.Turn(alone)
	c.out.Unlock()
	c.out.FlushTurn(turn)
	return c.await(ctx, p, id, alone)
}

// begunWithError sorts out a call that could not be sent in whole.
func (c *Conn) begunWithError(ctx context.Context, p *pendingCall, id uint32, err error) error {
	if errors.Is(err, errStopped) { // its ending, or the beginning of a reply, was here first
		return c.await(ctx, p, id, false)
	}
	if p.state.Load() == p.gen<<2|callWaiting {
		p.recycle() // never had a slot
	}
	return err
}

// DoAll makes all the calls, in any order and at the same time, and returns when
// all have ended: nil when none failed, otherwise the first error in the order
// of calls; each has its Err. It costs one wake-up where as many Do would cost
// one each. When ctx ends, the calls that have not ended end with its error.
func (c *Conn) DoAll(ctx context.Context, calls []*Call) error {
	g := &callGroup{done: make(chan struct{}, 1)}
	g.left.Store(int64(len(calls)) + 1) // one for this loop, so that the end is not seen too early
	pending := make([]*pendingCall, len(calls))
	ids := make([]uint32, len(calls))
	c.out.Lock()
	for i, call := range calls {
		call.Err = nil
		p := newPending(call, g)
		id, err := c.begin(ctx, p)
		if err != nil {
			if !errors.Is(err, errStopped) { // else counted by who ended it
				call.Err = err
				g.left.Add(-1)
				p.abandon()
				p = nil
			}
		}
		pending[i], ids[i] = p, id
		if c.out.Eager() {
			c.flushLocked()
		}
	}
	c.out.Unlock()
	c.out.Flush()
	if g.left.Add(-1) > 0 {
		c.awaitAll(ctx, g, pending, ids)
	}
	var first error
	for i, call := range calls {
		if first == nil {
			first = call.Err
		}
		if p := pending[i]; p != nil {
			p.recycle()
		}
	}
	return first
}

// awaitAll waits for the group, and abandons what is left of it when ctx ends.
func (c *Conn) awaitAll(ctx context.Context, g *callGroup, pending []*pendingCall, ids []uint32) {
	c.ensureReader()
	select {
	case <-g.done:
		return
	case <-ctx.Done():
	}
	for {
		c.out.Lock()
		for i, p := range pending {
			if p != nil && p.abandon() {
				c.cancelLocked(p, ids[i])
				p.call.Err = callError(ctx.Err(), p.call.Method, false)
				pending[i] = nil // never to be used again
				if g.left.Add(-1) == 0 {
					g.done <- struct{}{}
				}
			}
		}
		c.out.Unlock()
		c.out.Flush()
		select {
		case <-g.done:
			return
		default:
			time.Sleep(deliveryPause) // into what is left, something is being delivered
		}
	}
}

// deliveryPause is how long a caller that gives up lets the reader store what it
// is storing for it, before it tries again.
const deliveryPause = 20 * time.Microsecond

// callError wraps an error that ended a call on this side.
func callError(err error, method string, notRun bool) error {
	var e *Error
	if errors.As(err, &e) && e.notRun == notRun && e.Op == "call" {
		return err
	}
	return &Error{Code: max(CodeOf(err), Canceled), Op: "call", Addr: method, Err: err, notRun: notRun}
}

// begin waits until the call may be sent, takes a slot and appends the request.
// It is called and returns with out's lock held. An error means that nobody
// waits for p any more, except errStopped, after which p is or will be finished.
func (c *Conn) begin(ctx context.Context, p *pendingCall) (uint32, error) {
	call := p.call
	code, err := c.methodNumber(call.Method)
	if err != nil {
		return 0, err
	}
	m := message{kind: FrameCall, code: code, name: call.Method, payload: call.Request}
	m.deadline, _ = ctx.Deadline()
	if err := c.admitCall(ctx, &m); err != nil {
		return 0, callError(err, call.Method, true)
	}
	var id uint32
	if n := len(c.free); n > 0 {
		id = c.free[n-1]
		c.free = c.free[:n-1]
	} else {
		c.used++
		id = c.used
	}
	e := c.calls.grow(id)
	e.gen, e.cost = p.gen, len(call.Request)+messageCost
	e.end, e.whole, e.answered, e.cancel = 0, false, false, false
	e.pending.Store(p)
	c.reserved += e.cost
	c.expecting.Add(1)
	c.callsSent.Add(1)
	m.id = id
	if m.size() <= c.limits.frame {
		c.out.Put(m.append(c.out.Buffer(), len(m.payload)))
	} else if err := c.beginLarge(ctx, p, e, &m); err != nil {
		return id, err
	}
	e.whole, e.end = true, c.out.Position()
	return id, nil
}

// messageCost is what a message counts beside its payload.
const messageCost = 64

// admitCall waits until nothing stands against the call: the connection is
// open, there are a slot and request bytes on the other side, and room here.
func (c *Conn) admitCall(ctx context.Context, m *message) error {
	cost := len(m.payload) + messageCost
	if len(m.payload) > c.limits.message {
		return &Error{Code: ResourceExhausted, Op: "call", Addr: m.name, notRun: true,
			Message: fmt.Sprintf("request of %d bytes, the other side takes %d", len(m.payload), c.limits.message)}
	}
	if c.limits.calls == 0 {
		return &Error{Code: Unimplemented, Op: "call", Addr: m.name, Message: "the other side serves no calls", notRun: true}
	}
	free := func() bool {
		return (len(c.free) > 0 || int(c.used) < c.limits.calls) &&
			(c.reserved == 0 || c.reserved+cost <= c.limits.requestBytes)
	}
	for waited := false; ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !m.deadline.IsZero() && !time.Now().Before(m.deadline) {
			return context.DeadlineExceeded
		}
		if err := c.life.mayOpen(c); err != nil {
			return err
		}
		if !free() || !waited && !c.admit.Empty() {
			waited = true
			if err := c.waitFor(ctx, &c.admit, func() bool { return free() || c.life.mayOpen(c) != nil }); err != nil {
				return err
			}
			continue
		}
		if ok, err := c.room(ctx, min(m.size(), c.limits.frame)+frameHeaderLen); ok || err != nil {
			return err
		}
	}
}

// room reports whether n bytes can be appended. When not, it does something
// about it, for which it gives up out's lock, and everything must be looked at again.
func (c *Conn) room(ctx context.Context, n int) (bool, error) {
	switch {
	case c.out.HasRoom(n):
		return true, nil
	case c.out.Eager():
		c.flushLocked()
		return false, nil
	}
	return false, c.out.WaitRoom(ctx, n)
}

// waitFor waits at a gate for something that the other side must do. It is
// called and returns with out's lock held, and gives it up meanwhile.
func (c *Conn) waitFor(ctx context.Context, g *batch.Gate, open func() bool) error {
	c.expecting.Add(1)
	defer c.expecting.Add(-1)
	c.out.Unlock()
	c.out.Flush()
	c.ensureReader()
	c.out.Lock()
	return c.out.Wait(ctx, g, open)
}

// beginLarge appends a request that takes several frames. When it fails, what
// was begun is aborted.
func (c *Conn) beginLarge(ctx context.Context, p *pendingCall, e *outCall, m *message) error {
	gen := p.gen
	begun, err := c.sendFragments(ctx, m, func() bool { return p.state.Load() != gen<<2|callWaiting })
	if err == nil {
		return nil
	}
	if begun {
		c.out.Put(appendFrameHeader(c.out.Buffer(), FrameHeader{Type: FrameAbort, ID: m.id}))
		c.out.Signal()
		c.out.Kick()
	}
	e.whole = true
	if !p.abandon() {
		err = errStopped
	}
	if !begun {
		e.pending.Store(nil)
	}
	if !begun || e.answered {
		c.freeSlot(m.id, e)
	}
	if err == errStopped {
		return err
	}
	return callError(err, m.name, true)
}

// freeSlot makes a slot free for another call. Called under out's lock, when
// the ending has arrived and nothing more will be sent.
func (c *Conn) freeSlot(id uint32, e *outCall) {
	c.reserved -= e.cost
	e.cost = 0
	c.free = append(c.free, id)
	c.expecting.Add(-1)
	c.out.Open(&c.admit)
	if c.life.draining {
		c.out.OpenAll(&c.life.changed)
	}
}

// await waits for the ending of a call that was sent. alone says that no other
// was in flight: its caller may read the reply itself.
func (c *Conn) await(ctx context.Context, p *pendingCall, id uint32, alone bool) error {
	if !alone || !c.borrow(p) {
		c.ensureReader()
		if done := ctx.Done(); done == nil {
			<-p.done
		} else {
			select {
			case <-p.done:
			case <-done:
				if c.abandon(p, id) {
					return callError(ctx.Err(), p.call.Method, false)
				}
			}
		}
	}
	err := p.call.Err
	p.recycle()
	return err
}

// abandon gives up a call for its caller and has the other side told. False
// means that it has ended meanwhile. While a part of the reply is being stored
// it is neither: the caller may get away before the next.
func (c *Conn) abandon(p *pendingCall, id uint32) bool {
	for {
		c.out.Lock()
		ok := p.abandon()
		if ok {
			c.cancelLocked(p, id)
		}
		c.out.Unlock()
		if ok {
			c.out.Flush()
			return true
		}
		select {
		case <-p.done:
			return false
		default:
			time.Sleep(deliveryPause)
		}
	}
}

// cancelLocked has CANCEL sent for an abandoned call, unless its ending has come.
func (c *Conn) cancelLocked(p *pendingCall, id uint32) {
	if e := c.calls.at(id); e.pending.Load() == p && e.gen == p.gen {
		e.cancel = true
		c.cancels = append(c.cancels, id)
		c.out.Signal()
	}
}
