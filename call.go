package plugwire

import (
	"context"
	"errors"
	"fmt"
	"runtime"
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

	Metadata      Metadata // sent with the request; must not change until the call has ended
	ReplyMetadata Metadata // what came with the reply or error, or nil

	// Idempotent says that running the call twice does no harm, so that a Pool or a
	// Plugin may run it again when its connection broke and it may have run already.
	Idempotent bool

	parts assembly // of a reply in several frames
}

// join puts a reply together that came in several frames.
func (c *Call) join() {
	if c.parts.total > 0 {
		c.Reply = c.parts.join(c.Reply)
	}
}

// Caller is what makes calls.
type Caller interface {
	Call(ctx context.Context, method string, req []byte) ([]byte, error)
	Do(ctx context.Context, c *Call) error
	DoAll(ctx context.Context, calls []*Call) error
	Notify(ctx context.Context, method string, msg []byte) error
	OpenStream(ctx context.Context, method string) (*Stream, error)
}

var _ Caller = (*Conn)(nil)

// outCall is a slot of this side's calls. The reader frees it after the ending
// has arrived: the caller may still be about to take the result from its Call.
type outCall struct {
	state  atomic.Uint32 // callIdle and so on
	stream atomic.Pointer[Stream]
	// Stored before the state becomes callWaiting.
	call  *Call
	group *callGroup    // of DoAll, or nil
	done  chan struct{} // the caller's, which gets a token when the call has ended, without group

	// For Config.Metrics. record is nil once the call has been counted, and guarded
	// by out's lock. time is when the call began, stored as call is; who takes in
	// the ending makes it how long that took, and stores code.
	record *methodRecord
	time   time.Duration
	code   Code

	// Of a reply in several frames; they belong to the reading role.
	part assembly
	meta Metadata

	// Guarded by out's lock.
	cost   int    // of the request, against the other side's budget
	end    uint64 // where the request ends in the byte stream, once whole
	whole  bool   // the request has been appended in whole
	ended  bool   // only whole is missing for the slot to be free
	cancel bool   // CANCEL is to be sent
}

// The states of a slot. Who moves it from waiting to delivering may write the
// result, and nobody else touches the Call meanwhile.
const (
	callIdle       = iota // nothing is asked, or the ending has been delivered
	callWaiting           // for the ending
	callDelivering        // the result, or a part of it, is being written
	callAbandoned         // the caller has gone: the ending frees the slot
	callStream            // of a stream
	callUnopened          // of a stream whose OPEN has not been sent
)

// claim gets the right to write the result.
func (e *outCall) claim() bool { return e.state.CompareAndSwap(callWaiting, callDelivering) }

// abandon ends the caller's interest. False means that the result is being
// written or is there.
func (e *outCall) abandon() bool {
	for !e.state.CompareAndSwap(callWaiting, callAbandoned) {
		if e.state.Load() == callIdle {
			return false
		}
		runtime.Gosched() // a part of the reply is being copied
	}
	return true
}

// finish hands the result to the caller. Who calls it has claimed the slot.
func (e *outCall) finish(err error) {
	if err != nil { // else it is nil: the caller's memory is far away
		e.call.Err = err
	}
	g, done := e.group, e.done
	e.state.Store(callIdle)
	if g != nil {
		g.end(1)
		return
	}
	done <- struct{}{}
}

// callGroup is what the calls of one DoAll share: one wake-up.
type callGroup struct {
	left atomic.Int64
	done chan struct{}
	ids  []uint32 // the calls' slots, 0 for those without
}

// end counts n ended calls.
func (g *callGroup) end(n int64) {
	if g.left.Add(-n) == 0 {
		g.done <- struct{}{}
	}
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
	done := c.shared.tokens.Get().(chan struct{})
	defer c.shared.tokens.Put(done)
	alone := c.expecting.Add(1) == 1 && !c.crowd.Load()
	began := c.begins()
	c.out.Lock()
	id, e, err := c.begin(ctx, call, began, nil, done)
	if e == nil { // before Turn, whose promise would not be kept
		c.out.Unlock()
		call.join() // it may have ended well before the request was sent in whole
		return err
	}
	turn := c.out.Turn(alone)
	c.out.Unlock()
	c.out.FlushTurn(turn)
	over := func() bool {
		select {
		case <-done:
			return true // the reader no longer counts it
		default:
			return false
		}
	}
	if alone && c.borrow(over, nil) {
		call.join()
		return call.Err
	}
	c.ensureReader()
	if cancelled := ctx.Done(); cancelled == nil {
		<-done
	} else {
		select {
		case <-done:
		case <-cancelled:
			if c.abandon(ctx, e, id, done) {
				return callError(ctx.Err(), call.Method, false)
			}
			<-done // it was being delivered
		}
	}
	call.join()
	return call.Err
}

// DoAll makes all the calls, in any order and at the same time, and returns when
// all have ended: nil when none failed, otherwise the first error in the order
// of calls; each has its Err. It costs one wake-up where as many Do would cost
// one each. When ctx ends, the calls that have not ended end with its error.
func (c *Conn) DoAll(ctx context.Context, calls []*Call) error {
	g := c.shared.callGroups.Get().(*callGroup)
	g.ids = g.ids[:0]
	g.left.Store(int64(len(calls)) + 1) // one for this loop, so that the end is not seen too early
	c.expecting.Add(int64(len(calls)))
	began := c.begins()
	c.out.Lock()
	for _, call := range calls {
		id, e, err := c.begin(ctx, call, began, g, nil)
		if e == nil {
			call.Err = err
			g.end(1)
		}
		g.ids = append(g.ids, id)
		if c.out.Eager() {
			c.out.Unlock()
			c.out.Flush()
			c.out.Lock()
		}
	}
	c.out.Unlock()
	c.out.Flush()
	c.ensureReader()
	g.end(1)
	select {
	case <-g.done:
	case <-ctx.Done():
		c.abandonAll(ctx, g, calls)
	}
	c.shared.callGroups.Put(g)
	for _, call := range calls {
		call.join()
	}
	for _, call := range calls {
		if call.Err != nil {
			return call.Err
		}
	}
	return nil
}

// abandonAll gives up what has not ended of a group, and waits for what is
// being delivered.
func (c *Conn) abandonAll(ctx context.Context, g *callGroup, calls []*Call) {
	abandoned := int64(0)
	c.out.Lock()
	for i, id := range g.ids {
		e := c.calls.at(id) // perhaps another's by now
		if e != nil && e.group == g && e.call == calls[i] && c.abandonLocked(ctx, e, id) {
			calls[i].Err = callError(ctx.Err(), calls[i].Method, false)
			abandoned++
		}
	}
	c.out.Unlock()
	c.out.Flush()
	if abandoned > 0 {
		g.end(abandoned)
	}
	<-g.done
}

// callError wraps an error that ended a call on this side.
func callError(err error, method string, notRun bool) error {
	var e *Error
	if errors.As(err, &e) && e.notRun == notRun && e.Op == "call" {
		return err
	}
	code := CodeOf(err)
	if code == Unknown { // what broke the connection
		code = Unavailable
	}
	return &Error{Code: code, Op: "call", Addr: method, Err: err, notRun: notRun}
}

// begin waits until the call may be sent, takes a slot and appends the request.
// It is called and returns with out's lock held, after the caller has counted
// the call in expecting. Without a slot the call has ended with the error;
// (nil when the reply did not wait for the rest of the request), otherwise its
// ending will come.
func (c *Conn) begin(ctx context.Context, call *Call, began time.Duration, g *callGroup, done chan struct{}) (uint32, *outCall, error) {
	call.Err = nil
	code, err := c.methodNumber(call.Method)
	if err != nil {
		return c.notBegun(call, began, err)
	}
	m := message{kind: FrameCall, code: code, name: call.Method, payload: call.Request}
	m.deadline, _ = ctx.Deadline()
	if call.Metadata != nil || call.ReplyMetadata != nil {
		call.ReplyMetadata = nil
		if err := c.setMeta(&m, call.Metadata); err != nil {
			return c.notBegun(call, began, err)
		}
	}
	if !c.mayBegin(ctx, &m) {
		if err := c.admitCall(ctx, &m); err != nil {
			return c.notBegun(call, began, callError(err, call.Method, true))
		}
	}
	id, e := c.takeSlot()
	e.call, e.group, e.done = call, g, done
	e.cost, e.end = m.cost(), 0
	e.whole, e.ended, e.cancel = false, false, false
	if c.shard != nil {
		e.record, e.time = c.callRecord(code, call.Method), began
	}
	e.state.Store(callWaiting)
	c.reserved += e.cost
	c.callsSent++
	m.id = id
	if code != 0 && m.deadline.IsZero() && m.metaLen == 0 && len(call.Request) <= c.limits.frame {
		c.out.Put(append(appendHeader(c.out.Buffer(), FrameCall, 0, code, id, len(call.Request)), call.Request...))
	} else if m.size() <= c.limits.frame {
		c.out.Put(m.append(c.out.Buffer(), len(m.payload)))
	} else if whole, err := c.beginLarge(ctx, e, &m); !whole {
		return 0, nil, err
	}
	e.whole, e.end = true, c.out.Position()
	if e.ended { // early, before the request was whole
		c.freeSlot(id, e)
	}
	return id, e, nil
}

// notBegun ends a call that failed before it had a slot.
func (c *Conn) notBegun(call *Call, began time.Duration, err error) (uint32, *outCall, error) {
	c.expecting.Add(-1)
	c.countUnsent(call.Method, false, began, err)
	return 0, nil, err
}

// takeSlot returns a free slot. Called under out's lock, when there is one.
func (c *Conn) takeSlot() (uint32, *outCall) {
	if n := len(c.free); n > 0 {
		id := c.free[n-1]
		c.free = c.free[:n-1]
		return id, c.calls.at(id)
	}
	c.used++
	return c.used, c.calls.grow(c.used)
}

// slotFor reports whether there are a slot and request bytes for a request.
func (c *Conn) slotFor(cost int) bool {
	return (len(c.free) > 0 || int(c.used) < c.limits.calls) &&
		(c.reserved == 0 || c.reserved+cost <= c.limits.requestBytes)
}

// mayBegin reports whether nothing stands against a call, as is usual.
func (c *Conn) mayBegin(ctx context.Context, m *message) bool {
	return !c.life.refuses && m.deadline.IsZero() && c.admit.Empty() && c.slotFor(m.cost()) &&
		m.size() <= c.limits.frame && c.out.HasRoom(m.size()+frameHeaderLen) && ctx.Err() == nil
}

// messageCost is what a message counts beside its payload and metadata.
const messageCost = 64

// cost is what a request counts against the other side's budget.
func (m *message) cost() int { return len(m.payload) + m.metaLen + messageCost }

// setMeta gives a request metadata.
func (c *Conn) setMeta(m *message, md Metadata) error {
	if len(md) == 0 {
		return nil
	}
	op := "call"
	if m.kind == FrameOpen {
		op = "stream"
	}
	err := m.setMeta(md)
	switch {
	case err != nil:
	case !c.metadata:
		return &Error{Code: Unimplemented, Op: op, Addr: m.name, Message: "the other side does not take metadata", notRun: true}
	case m.prefixLen()+5 > c.limits.frame: // beside the total and one byte
		err = fmt.Errorf("metadata of %d bytes, the other side takes frames of %d", m.metaLen, c.limits.frame)
	}
	if err != nil {
		return metaError(op, m.name, err)
	}
	return nil
}

// admitCall waits until nothing stands against the call: the connection is
// open, there are a slot and request bytes on the other side, and room here.
func (c *Conn) admitCall(ctx context.Context, m *message) error {
	if len(m.payload) > c.limits.message {
		return &Error{Code: ResourceExhausted, Op: "call", Addr: m.name, notRun: true,
			Message: fmt.Sprintf("request of %d bytes, the other side takes %d", len(m.payload), c.limits.message)}
	}
	if c.limits.calls == 0 {
		return &Error{Code: Unimplemented, Op: "call", Addr: m.name, Message: "the other side serves no calls", notRun: true}
	}
	free := func() bool { return c.slotFor(m.cost()) }
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
			c.stalls.Calls++
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
		c.flushLocked(ctx)
		return false, nil
	}
	return false, c.out.WaitRoom(ctx, n)
}

// waitFor waits at a gate for something that the other side must do. It is
// called and returns with out's lock held, and gives it up meanwhile.
func (c *Conn) waitFor(ctx context.Context, g *batch.Gate, open func() bool) error {
	return c.wait(ctx, g, open, false)
}

// wait is waitFor; only says that nothing but what arrives can open the gate, so
// that who waits alone may read it itself.
func (c *Conn) wait(ctx context.Context, g *batch.Gate, open func() bool, only bool) error {
	over := func() bool {
		c.out.Lock()
		defer c.out.Unlock()
		if !open() {
			return false
		}
		c.expecting.Add(-1)
		return true
	}
	alone := c.expecting.Add(1) == 1
	c.out.Unlock()
	c.out.Flush()
	if only && alone && c.borrow(over, nil) {
		c.out.Lock()
		return nil
	}
	defer c.expecting.Add(-1)
	c.ensureReader()
	c.out.Lock()
	return c.out.Wait(ctx, g, open)
}

// beginLarge appends a request that takes several frames. When it cannot be sent
// in whole, what was begun is aborted, the slot is free or will be, and the call
// has ended with the error.
func (c *Conn) beginLarge(ctx context.Context, e *outCall, m *message) (whole bool, err error) {
	begun, err := c.sendFragments(ctx, m, func(begun bool) bool {
		refused := !begun && c.life.refuses // it may have waited for room, and an ack may have been sent meanwhile
		return refused || e.state.Load() == callIdle
	})
	if err == nil {
		return true, nil
	}
	if refused := c.life.mayOpen(c); err == errStopped && !begun && refused != nil {
		err = refused
	}
	if begun && !c.life.ended { // else GOAWAY has been sent
		c.out.Put(appendFrameHeader(c.out.Buffer(), FrameHeader{Type: FrameAbort, ID: m.id}))
		c.out.Kick()
	}
	err = callError(err, m.name, true)
	switch {
	case begun && e.abandon():
		c.countEnded(e, CodeOf(err))
		return false, err // the ending will free the slot
	case !begun && e.abandon():
		c.countEnded(e, CodeOf(err))
		e.state.Store(callIdle)
		c.expecting.Add(-1)
	default: // it has ended already, well or not
		e.drop()
		err = e.call.Err
		if !e.ended {
			e.whole = true // the reader will free the slot
			return false, err
		}
	}
	c.freeSlot(m.id, e)
	return false, err
}

// drop takes back what finish has left: the call counts as never begun.
func (e *outCall) drop() {
	if e.group != nil {
		e.group.left.Add(1) // its maker counts it again
		return
	}
	<-e.done
}

// freeSlot makes a slot free for another call. Called under out's lock, when
// the ending has arrived and nothing more will be sent.
func (c *Conn) freeSlot(id uint32, e *outCall) {
	c.reserved -= e.cost
	e.call, e.group, e.done = nil, nil, nil
	c.free = append(c.free, id)
	if !c.admit.Empty() {
		c.out.Open(&c.admit)
	}
	c.drainStep()
}

// abandon gives up a call for its caller, who waits at done, and has the other
// side told. False means that the call has ended or is about to.
func (c *Conn) abandon(ctx context.Context, e *outCall, id uint32, done chan struct{}) bool {
	c.out.Lock()
	ok := e.done == done && c.abandonLocked(ctx, e, id) // else the slot is another's by now
	c.out.Unlock()
	if ok {
		c.out.Flush()
	}
	return ok
}

func (c *Conn) abandonLocked(ctx context.Context, e *outCall, id uint32) bool {
	if !e.abandon() {
		return false
	}
	c.countEnded(e, CodeOf(ctx.Err()))
	e.cancel = true
	c.cancels = append(c.cancels, id)
	c.out.Signal()
	return true
}
