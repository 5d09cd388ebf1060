package plugwire

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Serving the other side's calls: on the reader's goroutine (inline), where a
// quick handler costs no change of goroutine, or on a worker's.

// inCall is a slot of the other side's calls.
type inCall struct {
	// state is inBusy from the first frame until the ending is appended, but
	// stays inIdle while a handler runs inline and nobody else can see the slot.
	state atomic.Uint32
	ctx   atomic.Pointer[requestContext] // while the handler runs, if it asked for one

	stream   atomic.Pointer[Stream] // while state is inStream
	crossing int64                  // bytes of frames that may still come for a stream that has ended

	conn   *Conn
	id     uint32
	record *methodRecord // for Config.Metrics, as is began
	began  time.Duration
	req    Request
	cost   int64
	kept   bool // counted in the connection's servingCount and servingBytes
	held   int  // bytes to give back to the Server's budget with the ending

	// Of a request in several frames; of the holder of the reading role. Unwanted
	// when the request was refused and its rest is still to come.
	part assembly

	// Of the worker that the call is given to.
	whole  assembly // a request in several frames, to be put together
	copied *[]byte  // owns the payload, when it was copied out of the read buffer
	result []byte   // a reply that only has to be sent
	err    error
	ready  bool // result and err are there

	running atomic.Pointer[methodRecord] // record, while kept
}

const (
	inIdle = iota
	inBusy
	inCancelled // and the caller has gone
	inStream    // a stream, until its last frame is appended
)

// cancel passes on that the caller no longer waits.
func (in *inCall) cancel() {
	if !in.state.CompareAndSwap(inBusy, inCancelled) {
		return // the ending has crossed it
	}
	if ctx := in.ctx.Load(); ctx != nil {
		ctx.cancel(context.Canceled)
	}
}

// keep counts a call that does not end at once. The holder of the reading role calls it.
func (c *Conn) keep(in *inCall) {
	if in.kept {
		return
	}
	in.kept = true
	in.state.Store(inBusy)
	c.servingCount.Add(1)
	c.servingBytes.Add(in.cost)
	if c.shard != nil {
		in.running.Store(in.record)
	}
}

// copies are buffers for payloads that leave the read buffer, of 256 bytes, four times
// as much and so on: what waits holds less than five times its bytes, or that least
// size. The last are for all of a frame. larges are for messages of several frames.
var (
	copies [5]sync.Pool
	larges sync.Pool
)

const (
	leastCopy = 256
	// maxCopy holds a frame with what precedes it in notes.
	maxCopy = maxFrame + maxFrame/8
	// maxLarge is the largest buffer that is used again.
	maxLarge = 4 << 20
)

func copySize(class int) int {
	if class == len(copies)-1 {
		return maxCopy
	}
	return leastCopy << (2 * class)
}

// getCopy returns an empty buffer for n bytes, which putCopy takes back.
func getCopy(n int) *[]byte {
	if n > maxCopy { // as long as it is: a large buffer may be much larger
		b := make([]byte, 0, n)
		return &b
	}
	class := 0
	for copySize(class) < n {
		class++
	}
	if b, ok := copies[class].Get().(*[]byte); ok {
		*b = (*b)[:0]
		return b
	}
	b := make([]byte, 0, copySize(class))
	return &b
}

func putCopy(b *[]byte) {
	for class := range copies {
		if cap(*b) == copySize(class) {
			copies[class].Put(b)
			return
		}
	}
	putLarge(*b)
}

// getLarge returns an empty buffer, perhaps with room for a large message.
func getLarge() []byte {
	if b, ok := larges.Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return nil
}

func putLarge(b []byte) {
	if cap(b) > maxFrame && cap(b) <= maxLarge {
		held := b // b itself must not escape
		larges.Put(&held)
	}
}

// lookUp finds the method of a CALL or NOTIFY: nil when it was called by a name
// that is not there.
func (c *Conn) lookUp(h *FrameHeader, name []byte) (*method, error) {
	t := c.mux.table.Load()
	if h.Code != 0 {
		if int(h.Code) > len(t.methods) {
			return nil, fmt.Errorf("plugwire: %v of method number %d, of which there is none", h.Type, h.Code)
		}
		return t.methods[h.Code-1], nil
	}
	if m := t.byName[string(name)]; m != nil {
		return m, nil
	}
	return t.fallback, nil
}

// call takes in a CALL frame; mine is false when the role was taken over.
func (rd *reader) call(h *FrameHeader, b []byte) (mine bool, err error) {
	c := rd.c
	rd.served = true
	rd.message()
	in := c.serving.at(h.ID)
	if in == nil {
		if in = c.serving.grow(h.ID); in == nil {
			return true, fmt.Errorf("plugwire: CALL in slot %d, MaxCalls is %d", h.ID, c.serving.limit)
		}
	}
	if in.part.total > 0 {
		return rd.callPart(in, h, b)
	}
	switch {
	case h.Flags&(FlagBegin|FlagMore) == FlagMore:
		return true, errNoBegin
	case in.state.Load() != inIdle:
		return true, fmt.Errorf("plugwire: CALL in slot %d, which is in use", h.ID)
	case c.life.acked.Load():
		return true, errors.New("plugwire: CALL after GOAWAY ack")
	}
	pre, payload, m, err := c.opening(h, b)
	if err != nil {
		return true, err
	}
	in.cost = int64(max(pre.total, len(payload)) + pre.metaLen + messageCost)
	if err := c.withinBudget(in.cost); err != nil {
		return true, err
	}
	in.crossing = 0
	if !rd.unsettled { // Close looks for it after it has set ended
		rd.unsettled = true
		c.unsettled.Store(true)
		if c.ended.Load() {
			return true, nil
		}
	}
	in.conn, in.id = c, h.ID
	if c.shard != nil {
		in.record, in.began = c.servedRecord(m, false), rd.readAt()
	}
	r := &in.req
	r.conn, r.method, r.in, r.deadline, r.name = c, m, in, time.Time{}, ""
	r.meta = pre.meta
	if m == nil || m.number == 0 {
		r.name = string(pre.name)
	}
	if pre.hasLeft {
		r.deadline = time.Now().Add(pre.left)
	}
	if pre.total > 0 {
		c.keep(in)
		in.part = assembly{total: pre.total}
		rd.gather(in, payload, pre.total)
		return true, nil
	}
	r.payload = payload
	return rd.dispatch(in), nil
}

// withinBudget enforces the budget for requests.
func (c *Conn) withinBudget(cost int64) error {
	if before := c.servingBytes.Load(); before > 0 && before+cost > int64(c.cfg.Limits.MaxRequestBytes) {
		return fmt.Errorf("plugwire: requests of %d bytes in flight, MaxRequestBytes is %d", before+cost, c.cfg.Limits.MaxRequestBytes)
	}
	return nil
}

// opening reads what precedes the payload in a CALL or NOTIFY that opens a
// message, and finds the method.
func (c *Conn) opening(h *FrameHeader, b []byte) (pre prefix, payload []byte, m *method, err error) {
	payload = b
	if h.Flags != 0 || h.Code == 0 || len(b) > c.cfg.Limits.MaxMessage {
		switch {
		case h.Flags&(FlagBegin|FlagMore) == FlagMore:
			err = errNoBegin
		case h.Flags&FlagMeta != 0 && !c.metadata:
			err = errNoMetadata
		default:
			pre, payload, err = parsePrefix(h, b, c.cfg.Limits.MaxMessage)
		}
		if err != nil {
			return pre, nil, nil, err
		}
	}
	m, err = c.lookUp(h, pre.name)
	return pre, payload, m, err
}

// callPart takes in a further fragment of a request.
func (rd *reader) callPart(in *inCall, h *FrameHeader, b []byte) (mine bool, err error) {
	if h.Flags&^FlagMore != 0 {
		return true, errBeginTwice
	}
	whole, err := in.part.check(h, b)
	if err != nil {
		return true, err
	}
	rd.gather(in, b, len(b))
	if !whole {
		return true, nil
	}
	a := in.part
	in.part = assembly{}
	if a.unwanted { // its ending was sent
		return true, nil
	}
	in.held = rd.c.arrived(a.have)
	in.whole = a
	return rd.dispatch(in), nil
}

// gather takes in a part of a request. When the Server has no room for it, and
// as much more as is known to come, the request is refused there and then: the
// other side need not send the rest, and what it still sends is dropped.
func (rd *reader) gather(in *inCall, b []byte, room int) {
	if c := rd.c; !in.part.unwanted && (!c.cfg.budget.fits(room) || !c.arrives(len(b))) {
		c.cfg.budget.give(c.arrived(in.part.have))
		in.part.discard()
		rd.refuse(in, errServerFull)
	}
	in.part.put(rd, b)
}

// aborted takes in an ABORT: a request, reply or one-way message that will not be completed.
func (rd *reader) aborted(h *FrameHeader) error {
	c := rd.c
	if c.isStream(h) {
		return rd.streamFrame(h, nil)
	}
	if h.Flags&FlagBack != 0 {
		e := c.calls.at(h.ID)
		if e == nil || e.state.Load() == callIdle || e.part.total == 0 {
			return fmt.Errorf("plugwire: ABORT in slot %d, where no reply was begun", h.ID)
		}
		e.part.drop()
		e.meta = nil
		return nil
	}
	if h.ID == 0 {
		return rd.notifyAborted()
	}
	in := c.serving.at(h.ID)
	if in == nil || in.part.total == 0 {
		return fmt.Errorf("plugwire: ABORT in slot %d, where no request was begun", h.ID)
	}
	a := in.part
	in.part.drop()
	if a.unwanted { // its ending was sent
		return nil
	}
	c.cfg.budget.give(c.arrived(a.have))
	rd.refuse(in, &Error{Code: Canceled, Message: "the request was not completed", notRun: true})
	return nil
}

// refuse ends a call without running it. It costs the other side next to
// nothing to be refused, so where endings do not leave, this one waits, and the
// slot with it.
func (rd *reader) refuse(in *inCall, err error) {
	in.whole.drop()
	if rd.isCongested() {
		rd.c.keep(in)
		in.req.release()
		in.err, in.ready = err, true
		rd.c.workers.run(in)
		return
	}
	rd.respond(in, nil, err)
}

// isCongested reports whether endings do not leave fast enough.
func (rd *reader) isCongested() bool {
	if c := rd.c; rd.congested {
		rd.putReplies()
		c.out.Lock()
		rd.congested = c.out.Len() > congested
		c.out.Unlock()
	}
	return rd.congested
}

// late returns why a request need not run any more, or nil.
func (in *inCall) late() error {
	switch {
	case in.state.Load() == inCancelled:
		return &Error{Code: Canceled, Message: "cancelled before it ran", notRun: true}
	case !in.req.deadline.IsZero() && !time.Now().Before(in.req.deadline):
		return &Error{Code: DeadlineExceeded, Message: "the deadline passed before it ran", notRun: true}
	}
	return nil
}

// replyBytes is the room for replies that is taken when there is none.
const replyBytes = 2 * batchBytes

var replyBuffers = sync.Pool{New: func() any { b := make([]byte, 0, replyBytes); return &b }}

// replyRoom returns where a handler's reply should go: behind the frames that
// are there already, with room for a header.
func (rd *reader) replyRoom() []byte {
	if rd.out == nil {
		rd.outOwner = replyBuffers.Get().(*[]byte)
		rd.out = (*rd.outOwner)[:0]
	}
	at := len(rd.out) + frameHeaderLen
	if cap(rd.out)-at < batchBytes/2 {
		rd.out = append(make([]byte, 0, max(replyBytes, at+batchBytes)), rd.out...)
	}
	return rd.out[at:at:cap(rd.out)]
}

// respond ends a call on the reader's goroutine. It never waits: endings gather
// until the frames at hand are taken in, or there are many.
func (rd *reader) respond(in *inCall, out []byte, err error) {
	c := rd.c
	at := len(rd.out) + frameHeaderLen
	code := OK
	reply := in.req.replyMetadata()
	if err == nil && reply == nil && at < cap(rd.out) && len(out) > 0 && &out[0] == &rd.out[:at+1][at] && len(out) <= c.limits.message {
		// The handler has written it where it belongs.
		appendHeader(rd.out, FrameReply, FlagBack, 0, in.id, len(out))
		rd.out = rd.out[:at+len(out)]
	} else {
		m := c.endingOf(in.id, out, err, reply)
		code = m.status()
		if pre := m.prefixLen(); pre > 0 { // goes where the handler has written the reply
			rd.out = slices.Grow(rd.out, frameHeaderLen+pre+len(m.payload))
			moved := rd.out[at+pre : at+pre+len(m.payload)]
			copy(moved, m.payload)
			m.payload = moved
		}
		rd.out = m.append(rd.out, len(m.payload))
	}
	in.req.release()
	if c.shard != nil {
		c.addServed(in, code)
	}
	rd.made++
	rd.put++
	if in.kept {
		rd.putReplies()
		c.out.Lock()
		c.endServing(in)
		c.out.Unlock()
	}
	if rd.made >= batchReplies || len(rd.out) >= batchBytes {
		rd.putReplies()
		rd.made = 0
		c.out.Flush()
	}
}

// putReplies appends the gathered endings to the pending bytes.
func (rd *reader) putReplies() {
	if len(rd.out) == 0 {
		return
	}
	c := rd.c
	c.out.Lock()
	if !c.life.ended { // else GOAWAY has been sent, behind which nothing comes
		c.out.Put(append(c.out.Buffer(), rd.out...))
	} else {
		c.life.unanswered = true
	}
	rd.congested = c.out.Len() > congested
	c.callsServed += uint64(rd.put)
	c.out.Unlock()
	c.countServed()
	rd.out, rd.put = rd.out[:0], 0
}

// oneFrame reports whether a reply fits one frame.
func (c *Conn) oneFrame(out []byte, md Metadata) bool {
	if md == nil || len(out) > c.limits.frame {
		return len(out) <= c.limits.frame
	}
	n, err := md.size()
	return err != nil || len(out)+n+2 <= c.limits.frame // or else refused
}

// endingOf lays out the ending of a call: REPLY, or ERROR when err is not nil.
func (c *Conn) endingOf(id uint32, out []byte, err error, md Metadata) message {
	m := message{flags: FlagBack, id: id}
	bad := m.setMeta(md)
	if bad == nil && m.metaLen+5 > c.limits.frame { // as for requests
		bad = fmt.Errorf("metadata of %d bytes, the caller takes frames of %d", m.metaLen, c.limits.frame)
	}
	if bad != nil {
		m.metaLen = 0
		err = &Error{Code: Internal, Message: "reply " + bad.Error()}
	} else if !c.metadata {
		m.metaLen = 0 // the other side has not learned of it
	}
	if err == nil && len(out) > c.limits.message {
		err = &Error{Code: ResourceExhausted, Message: fmt.Sprintf("reply of %d bytes, the caller takes %d", len(out), c.limits.message)}
	}
	if err == nil {
		m.kind, m.payload = FrameReply, out
		return m
	}
	m.kind = FrameError
	code, text, detail := Unknown, err.Error(), []byte(nil)
	var e *Error
	if errors.As(err, &e) {
		code, detail = e.Code, e.Detail
		if err == error(e) && e.Message != "" && e.Err == nil && e.Op == "" {
			text = e.Message
		}
		if e.notRun && e.Op == "" { // with Op it is about a call that the handler made itself
			m.flags |= FlagNotRun
		}
	} else if ctx := CodeOf(err); ctx != Unknown {
		code = ctx
	}
	const maxText = 2 << 10
	room := c.limits.frame - m.prefixLen() - 2
	if len(detail) > room-maxText {
		detail, text = nil, fmt.Sprintf("%s (and %d bytes of detail, too many for a frame)", text[:min(len(text), maxText/2)], len(e.Detail))
	}
	text = text[:min(len(text), maxText, room)]
	m.code = uint16(code)
	m.payload = appendErrorPayload(nil, text, detail)
	return m
}

// respond sends the ending of a call from a goroutine that may wait.
func (c *Conn) respond(in *inCall, out []byte, err error) {
	m := c.endingOf(in.id, out, err, in.req.replyMetadata())
	if c.shard != nil {
		c.shard.add(in.record, m.status(), monotonic()-in.began)
	}
	in.req.release()
	if in.copied != nil {
		defer putCopy(in.copied) // m.payload may lie in it: an echo
		in.copied = nil
	}
	ctx := context.Background()
	c.out.Lock()
	defer c.out.Unlock()
	if m.size() <= c.limits.frame {
		for {
			if ok, err := c.room(ctx, m.size()+frameHeaderLen); err != nil || c.life.ended {
				c.endServing(in)
				return
			} else if ok {
				break
			}
		}
		c.out.Put(m.append(c.out.Buffer(), len(m.payload)))
	} else if _, err := c.sendFragments(ctx, &m, func(bool) bool { return c.life.ended }); err != nil {
		c.endServing(in) // the connection has ended
		return
	}
	c.endServing(in)
	c.callsServed++
	turn := c.out.Turn(c.servingCount.Load() == 0)
	c.out.Unlock()
	c.out.FlushTurn(turn)
	c.out.Lock()
}

// endServing frees the slot of a call that was kept: its ending has been
// appended. Called under out's lock.
func (c *Conn) endServing(in *inCall) {
	c.servingBytes.Add(-in.cost)
	if in.held > 0 {
		c.cfg.budget.give(in.held)
		in.held = 0
	}
	in.kept = false
	if c.life.ended {
		c.life.unanswered = true
	}
	if c.shard != nil {
		in.running.Store(nil)
	}
	in.state.Store(inIdle)
	if c.servingCount.Add(-1) == 0 {
		c.drainStep()
	}
}

// isStream reports whether the slot that a frame names is a stream's, or was
// and has just ended.
func (c *Conn) isStream(h *FrameHeader) bool {
	if h.Flags&FlagBack != 0 {
		e := c.calls.at(h.ID)
		return e != nil && e.state.Load() == callStream
	}
	in := c.serving.at(h.ID)
	return in != nil && (in.state.Load() == inStream || in.state.Load() == inIdle && in.crossing > 0)
}
