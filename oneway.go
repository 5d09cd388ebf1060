package plugwire

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/plugwire/plugwire/internal/batch"
)

// One-way messages: in order, under credit. Both counts are cumulative and never
// wrap. The cost of a message is its payload and messageCost.

// outNotes is the sending side. Guarded by out's lock.
type outNotes struct {
	sentBytes, sentMsgs       uint64
	handledBytes, handledMsgs uint64 // as the other side has said
	left                      int    // cost that may be sent without looking at anything else: enough is left for those who wait
	waiting                   int64  // cost of what waits for the window
	large                     bool   // a message of several frames is being sent
	moved                     bool   // a Pool's messages go over another connection
	ask                       bool   // CREDIT is to be asked for
	asked                     uint64 // sentMsgs when that was last decided
	window                    batch.Gate
	handled                   batch.Gate
}

// outstanding is the cost of what the other side has not yet handled.
func (n *outNotes) outstanding() uint64 {
	return n.sentBytes - n.handledBytes + messageCost*(n.sentMsgs-n.handledMsgs)
}

// fits reports whether a message may be sent now. One that is larger than the
// window goes alone.
func (n *outNotes) fits(size, window int) bool {
	have := n.outstanding()
	return !n.large && (have == 0 || have+uint64(size)+messageCost <= uint64(window))
}

// allow works out left anew.
func (n *outNotes) allow(c *Conn) {
	n.left = 0
	if !c.life.refuses && !n.large && !n.moved {
		n.left = int(max(int64(c.limits.oneWay)-int64(n.outstanding())-n.waiting, 0))
	}
}

func (n *outNotes) appendAsk(b []byte) []byte {
	if n.ask {
		n.ask = false
		b = appendFrameHeader(b, FrameHeader{Type: FrameCredit})
	}
	return b
}

// Notify sends a one-way message. Nil means that it was accepted: it will be
// sent and handled in the order in which this connection's Notify calls
// returned, unless the connection breaks. Notify waits while the other side is
// behind by Limits.OneWayWindow; when ctx ends meanwhile the message is not
// sent. msg is not touched after Notify returns. Flush waits for the handlers.
func (c *Conn) Notify(ctx context.Context, method string, msg []byte) error {
	return c.notify(ctx, method, msg, false)
}

// notify is Notify; pooled says that the message is a Pool's, which moveOn stops.
func (c *Conn) notify(ctx context.Context, method string, msg []byte, pooled bool) error {
	code, err := c.methodNumber(method)
	if err != nil {
		return err
	}
	cost := len(msg) + messageCost
	if !c.out.TryLock() {
		c.out.Lock()
	}
	n := &c.notes
	if code != 0 && cost <= n.left && len(msg) <= c.limits.frame && ctx.Err() == nil { // as is usual
		if b := c.out.Extend(frameHeaderLen + len(msg)); b != nil {
			n.left -= cost
			n.sentBytes += uint64(len(msg))
			n.sentMsgs++
			putHeader(b, FrameNotify, 0, code, 0, len(msg))
			copy(b[frameHeaderLen:], msg)
			if c.out.Attended() { // nearly always: a call costs too
				c.out.Unlock()
			} else {
				c.out.Queue(ctx)
			}
			return nil
		}
	}
	err = c.notifySlow(ctx, &message{kind: FrameNotify, code: code, name: method, payload: msg}, pooled)
	if err != nil {
		c.out.Unlock()
		return err
	}
	c.out.Queue(ctx)
	return nil
}

// notifySlow sends a message against which something may stand: it waits until
// nothing does.
func (c *Conn) notifySlow(ctx context.Context, m *message, pooled bool) error {
	n := &c.notes
	fail := func(err error) error { return callError(err, m.name, true) }
	if len(m.payload) > c.limits.message {
		return &Error{Code: ResourceExhausted, Op: "call", Addr: m.name, notRun: true,
			Message: fmt.Sprintf("message of %d bytes, the other side takes %d", len(m.payload), c.limits.message)}
	}
	large := m.size() > c.limits.frame
	cost := len(m.payload) + messageCost
	fits := func() bool { return n.fits(len(m.payload), c.limits.oneWay) }
	for waited := false; ; {
		if err := ctx.Err(); err != nil {
			return fail(err)
		}
		if err := c.mayNotify(pooled); err != nil {
			return fail(err)
		}
		if !fits() || !waited && (large || cost > n.left) && !n.window.Empty() { // a large one would hold them up
			if !waited {
				n.waiting += int64(cost) // until it is sent
				defer func() { n.waiting -= int64(cost); n.allow(c) }()
				n.allow(c)
			}
			waited = true
			c.stalls.OneWay++
			c.askCredit()
			open := func() bool {
				if fits() || c.mayNotify(pooled) != nil {
					return true
				}
				if c.askCredit() { // who waited before has sent something since
					c.out.Kick()
				}
				return false
			}
			if err := c.waitFor(ctx, &n.window, open); err != nil {
				return fail(err)
			}
			continue
		}
		if large {
			return c.notifyLarge(ctx, m, pooled)
		}
		if ok, err := c.room(ctx, m.size()+frameHeaderLen); err != nil {
			return fail(err)
		} else if ok {
			break
		}
	}
	c.out.Put(m.append(c.out.Buffer(), len(m.payload)))
	n.sentBytes += uint64(len(m.payload))
	n.sentMsgs++
	n.allow(c)
	return nil
}

// errMoved is what becomes of a Pool's message once moveOn was called.
var errMoved = &Error{Code: Unavailable, Op: "call", Message: "the Pool has moved on to another connection", notRun: true}

// mayNotify returns nil when a one-way message may be sent, else why not. Called
// under out's lock.
func (c *Conn) mayNotify(pooled bool) error {
	if pooled && c.notes.moved {
		return errMoved
	}
	return c.life.mayOpen(c)
}

// askCredit has the other side asked to say when all that was sent is handled,
// and reports whether that is new. While a large message is being sent it is
// left to those whom its end wakes.
func (c *Conn) askCredit() bool {
	n := &c.notes
	if n.large || n.asked == n.sentMsgs {
		return false
	}
	n.ask, n.asked = true, n.sentMsgs
	c.out.Signal()
	return true
}

// notifyLarge sends a message of several frames, with which no other mixes.
func (c *Conn) notifyLarge(ctx context.Context, m *message, pooled bool) error {
	n := &c.notes
	n.large, n.left = true, 0
	begun, err := c.sendFragments(ctx, m, func(begun bool) bool {
		if begun {
			return c.life.ended
		}
		if c.mayNotify(pooled) != nil { // it may have waited for room, and an ack may have been sent meanwhile
			return true
		}
		n.sentBytes += uint64(len(m.payload))
		n.sentMsgs++
		return false
	})
	n.large = false
	if err != nil {
		if begun && !c.life.ended { // else GOAWAY has been sent
			c.out.Put(appendFrameHeader(c.out.Buffer(), FrameHeader{Type: FrameAbort}))
		}
		if err == errStopped {
			err = c.mayNotify(pooled)
		}
		err = callError(err, m.name, true)
		c.out.Kick()
	}
	n.allow(c)
	c.out.Open(&n.window)
	return err
}

// Flush waits until the other side has handled every one-way message that
// Notify accepted before: their handlers have returned. It also sends whatever
// else is waiting to be sent.
func (c *Conn) Flush(ctx context.Context) error {
	c.out.Lock()
	defer c.out.Unlock()
	n := &c.notes
	target := n.sentMsgs
	if n.handledMsgs >= target {
		c.flushLocked(ctx)
		return nil
	}
	n.ask = true
	c.out.Signal()
	err := c.waitFor(ctx, &n.handled, func() bool { return n.handledMsgs >= target || c.life.ended })
	switch {
	case n.handledMsgs >= target: // perhaps with the end of the connection, of which a Gate tells first
		return nil
	case err == nil:
		err = c.Err()
	}
	return err
}

// moveOn is Flush for a Pool that goes on to another connection. Its messages that
// still wait for the window fail, as do later ones: Flush would not wait for them.
// Those that others send go on.
func (c *Conn) moveOn(ctx context.Context) error {
	c.out.Lock()
	c.notes.moved, c.notes.left = true, 0
	c.out.OpenAll(&c.notes.window)
	c.out.Unlock()
	return c.Flush(ctx)
}

// credited takes in what the other side says that it has handled.
func (c *Conn) credited(b []byte) error {
	f := fieldReader{b: b}
	bytes, msgs := f.u64(), f.u64()
	if f.bad || len(f.b) > 0 {
		return fmt.Errorf("plugwire: CREDIT of %d bytes", len(b))
	}
	c.out.Lock()
	defer c.out.Unlock()
	n := &c.notes
	if bytes < n.handledBytes || msgs < n.handledMsgs || bytes > n.sentBytes || msgs > n.sentMsgs {
		return fmt.Errorf("plugwire: CREDIT for %d bytes in %d messages, of %d in %d sent and %d in %d credited before",
			bytes, msgs, n.sentBytes, n.sentMsgs, n.handledBytes, n.handledMsgs)
	}
	if msgs > n.handledMsgs {
		c.reader.message() // it tells of some
	}
	n.handledBytes, n.handledMsgs = bytes, msgs
	n.allow(c)
	c.out.Open(&n.window)
	c.out.OpenAll(&n.handled)
	return nil
}

// inNotes is the receiving side of one-way messages.
type inNotes struct {
	// Of the holder of the reading role.
	gotBytes, gotMsgs   uint64 // arrived; a message in several frames counts when it begins
	seenBytes, seenMsgs uint64 // the handled counts as last looked at
	large               assembly
	largeNote           note

	// Guarded by out's lock.
	handledBytes, handledMsgs   uint64
	creditedBytes, creditedMsgs uint64 // as last said to the other side
	askedFirst, askedLast       uint64 // message counts at which it wants to hear, or 0
	due                         bool

	busy atomic.Bool // messages are handled on another goroutine: those that arrive queue up
	ctx  atomic.Pointer[requestContext]

	mu    sync.Mutex // guards the queue, and busy's way to false
	queue []notes

	running     int // size of the message that the queue's goroutine handles
	runningHeld int // its held
}

// appendCredit appends what is to be said about handled messages.
func (n *inNotes) appendCredit(b []byte) []byte {
	if !n.due {
		return b
	}
	n.due = false
	n.creditedBytes, n.creditedMsgs = n.handledBytes, n.handledMsgs
	b = appendFrameHeader(b, FrameHeader{Type: FrameCredit, Length: 16})
	return appendCreditPayload(b, n.handledBytes, n.handledMsgs)
}

// noteHandled accounts for handled messages and decides whether the other side
// should hear of it: when it asked, or in time for a quarter of the window, of
// which a stretch that is not yet accounted for may have its share.
func (c *Conn) noteHandled(bytes, msgs uint64) {
	n := &c.oneWay
	c.out.Lock()
	n.handledBytes += bytes
	n.handledMsgs += msgs
	c.creditDue()
	c.out.Unlock()
}

// creditDue is called under out's lock.
func (c *Conn) creditDue() {
	n := &c.oneWay
	uncredited := n.handledBytes - n.creditedBytes + messageCost*(n.handledMsgs-n.creditedMsgs)
	window := uint64(c.cfg.Limits.OneWayWindow)
	due := uncredited >= window/4-window/stretchShare
	if n.askedFirst > 0 && n.handledMsgs >= n.askedFirst {
		due = true
		n.askedFirst = 0
		if n.handledMsgs < n.askedLast {
			n.askedFirst = n.askedLast
		}
	}
	if due && !n.due {
		n.due = true
		c.out.Signal()
	}
	c.drainStep()
}

// creditAsked takes in a CREDIT that asks. The reader has settled what it
// handled so far.
func (c *Conn) creditAsked() {
	c.out.Lock()
	n := &c.oneWay
	n.askedLast = max(n.gotMsgs, 1)
	if n.askedFirst == 0 {
		n.askedFirst = n.askedLast
	}
	if n.gotMsgs == 0 || n.handledMsgs >= n.askedLast {
		n.askedFirst, n.due = 0, true
		c.out.Signal()
	}
	c.creditDue()
	c.out.Unlock()
}

// notify takes in a NOTIFY frame; mine is false when the role was taken over.
func (rd *reader) notify(h *FrameHeader, b []byte) (mine bool, err error) {
	c := rd.c
	n := &c.oneWay
	rd.served = true
	rd.message()
	switch {
	case h.ID != 0:
		return true, fmt.Errorf("plugwire: NOTIFY in slot %d", h.ID)
	case n.large.total > 0:
		return rd.notifyPart(h, b)
	case c.life.acked.Load():
		return true, fmt.Errorf("plugwire: NOTIFY after GOAWAY ack")
	}
	pre, payload, m, err := c.opening(h, b)
	if err != nil {
		return true, err
	}
	if err := c.noteArrived(max(pre.total, len(payload))); err != nil {
		return true, err
	}
	if m != nil && m.handler == nil {
		m = nil // a stream's: nobody is there
	}
	name := ""
	if m != nil && m.number == 0 { // the fallback's
		name = string(pre.name)
	}
	if pre.total > 0 {
		n.largeNote = note{method: m, name: name}
		n.large = assembly{total: pre.total, unwanted: m == nil}
		return true, rd.gatherNote(payload)
	}
	return rd.deliver(m, name, payload), nil
}

// notifyPart takes in a further fragment of a one-way message.
func (rd *reader) notifyPart(h *FrameHeader, b []byte) (mine bool, err error) {
	n := &rd.c.oneWay
	if h.Flags&^FlagMore != 0 {
		return true, errBeginTwice
	}
	whole, err := n.large.check(h, b)
	if err == nil {
		err = rd.gatherNote(b)
	}
	if err != nil || !whole {
		return true, err
	}
	nt, large := n.largeNote, n.large
	held := rd.noteComplete()
	n.large, n.largeNote = assembly{}, note{}
	if nt.method == nil {
		nt.dropped = large.total
		large.drop()
	} else if large.total > atOnce {
		nt.parts, nt.held = large, held
	}
	if nt.dropped > 0 || nt.parts.total > 0 { // nothing that the reader should wait for
		rd.queue(nt)
		return true, nil
	}
	rd.c.cfg.budget.give(held)
	nt.payload = large.join(getLarge())
	if mine = rd.deliver(nt.method, nt.name, nt.payload); mine { // handled, or copied
		putLarge(nt.payload)
	}
	return mine, nil
}

// gatherNote takes in a part of a one-way message. It cannot be refused as a
// request can, and to drop it would break what Notify promises: where the Server
// has no room for it, its connection ends.
func (rd *reader) gatherNote(b []byte) error {
	n := &rd.c.oneWay
	if !n.large.unwanted && !rd.c.arrives(len(b)) {
		return errServerFull
	}
	n.large.put(rd, b)
	return nil
}

// noteComplete is called when nothing more is expected of the message in several
// frames. It returns what is to be given back to the Server's budget.
func (rd *reader) noteComplete() int {
	if n := &rd.c.oneWay; !n.large.unwanted {
		return rd.c.arrived(n.large.have)
	}
	return 0
}

// atOnce is the largest message of several frames that the reader puts together.
const atOnce = 1 << 20

// notifyAborted drops a message in several frames: it counts as handled.
func (rd *reader) notifyAborted() error {
	n := &rd.c.oneWay
	if n.large.total == 0 {
		return fmt.Errorf("plugwire: ABORT of a one-way message that was not begun")
	}
	dropped := note{dropped: n.large.total}
	rd.c.cfg.budget.give(rd.noteComplete())
	n.large.drop()
	n.largeNote = note{}
	if !n.busy.Load() || !rd.c.enqueue(dropped) { // not before those before it
		rd.noteBytes += uint64(dropped.dropped)
		rd.noteMsgs++
	}
	return nil
}

// noteArrived counts an arriving message and enforces the window, as the other
// side must see it: what it has been told is never more than what was handled.
func (c *Conn) noteArrived(size int) error {
	n := &c.oneWay
	left := c.noteWindow(size + messageCost)
	n.gotBytes += uint64(size)
	n.gotMsgs++
	if size+messageCost > left && n.gotMsgs-n.seenMsgs > 1 {
		return fmt.Errorf("plugwire: one-way messages of %d bytes not yet handled, OneWayWindow is %d",
			c.noteOutstanding(), c.cfg.Limits.OneWayWindow)
	}
	return nil
}

// deliver runs a message's handler, behind those of the messages before it:
// inline, or by the queue.
func (rd *reader) deliver(m *method, name string, payload []byte) (mine bool) {
	c := rd.c
	n := &c.oneWay
	if n.busy.Load() && c.enqueue(note{method: m, name: name, payload: payload}) {
		return true
	}
	if m == nil { // nobody there, and nobody to tell
		rd.noteBytes += uint64(len(payload))
		rd.noteMsgs++
		return true
	}
	if !c.placementOf(m).inline() {
		rd.queue(note{method: m, name: name, payload: payload})
		return true
	}
	rd.in = nil
	r := &rd.note
	r.conn, r.method, r.name, r.payload = c, m, name, payload
	rd.noteSize = len(payload)
	room := rd.replyRoom()
	rd.enter(m, r, stretch{})
	invoke(m, r, room)
	return rd.noted()
}

// noted goes on after a handler that ran inline.
func (rd *reader) noted() (mine bool) {
	if rd.mark.stretch.most > 0 {
		return rd.stretchEnded(rd.walk(rd.begun))
	}
	c := rd.c
	rd.clock = 0
	rd.note.release()
	size := uint64(rd.noteSize)
	if rd.leave() {
		rd.noteBytes += size
		rd.noteMsgs++
		return true
	}
	rd.releaseBuffer()
	c.noteHandled(size, 1)
	c.flushIfDue()
	c.noteQueue()
	return false
}
