package plugwire

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/plugwire/plugwire/internal/batch"
)

// A Stream is a sequence of messages in each direction, opened by one side
// (Conn.OpenStream) and answered by a handler of the other (Mux.HandleStream). An
// unread stream slows its own sender only: each direction has a window of credit.
//
// Send and Recv may be called at the same time, and so may all other methods, but
// only one goroutine at a time may receive. The messages of several goroutines
// that call Send are not mixed, but come in any order.
//
// The stream ends when the handler has returned. Until then it holds a place in
// the other side's Limits.MaxCalls; an opener that loses interest calls Reset or
// Close, or has its context end.
type Stream struct {
	conn *Conn
	id   uint32
	back FrameFlags // BACK on the acceptor's side: a flag of every frame it sends
	info Info
	ctx  context.Context // the opener's own, or the handler's
	own  context.Context // what SetContext has set
	in   streamInput

	// The sending half, guarded by the connection's out lock.
	opened  bool          // OPEN was sent, or has arrived
	spoke   bool          // the acceptor's header, or what stands for it, was sent
	ready   bool          // nothing but credit stands against a message
	sending bool          // a message of several frames is being sent
	closed  bool          // CLOSE was sent
	gaveUp  bool          // RESET was sent
	over    bool          // the slot is not this stream's any more
	freed   bool          // LAST has arrived, or the connection has ended
	err     error         // why nothing more can be sent
	done    chan struct{} // closed when err is set; nil until somebody asks
	left    int           // cost that may be sent; less than 0 after a message larger than the window
	header  Metadata      // to be sent before the first message
	trailer Metadata      // to be sent with the end
	gate    batch.Gate    // those who wait for credit, or for another's long message
	large   int           // cost of the large message that was sent and not yet received
	told    uint64        // cost of handled messages that the other side has been told of
	due     int           // cost of which it is to be told
	listed  bool          // in the connection's dirty
	slot    *outCall      // the opener's
	place   *inCall       // the acceptor's

	handler func(*Stream) error // the acceptor's
	refusal *Error              // or why there is none

	stopWatch func() bool // ends the watch over the opener's context, or the handler's deadline
}

// OpenStream opens a stream to a method of the other side that was registered
// by HandleStream. It waits, until ctx ends, for a place in the other side's
// Limits.MaxCalls. The stream lives as long as ctx: when that ends the stream
// is reset, and the handler's context ends too. A deadline travels along.
//
// The other side hears of the stream with the first Send, CloseSend, Recv or
// Header; until then SetHeader gives it metadata. A refusal (no such method) is
// what Recv returns. The caller must read to the end, or call Reset or Close.
func (c *Conn) OpenStream(ctx context.Context, method string) (*Stream, error) {
	code, err := c.methodNumber(method)
	if err != nil {
		return nil, err
	}
	m := message{kind: FrameOpen, code: code, name: method}
	m.deadline, _ = ctx.Deadline()
	s := &Stream{conn: c, ctx: ctx, left: c.limits.streamWindow}
	s.info = Info{Method: method, Peer: c.peer, Conn: c}
	s.in.init(c)
	c.out.Lock()
	switch {
	case !c.streams:
		err = &Error{Code: Unimplemented, Message: "the other side does not take streams", notRun: true}
	default:
		err = c.admitCall(ctx, &m)
	}
	if err != nil {
		c.out.Unlock()
		return nil, streamError(err, method, true)
	}
	s.id, s.slot = c.takeSlot()
	e := s.slot
	e.stream.Store(s)
	e.cost, e.end, e.whole, e.cancel = m.cost(), 0, true, false
	e.state.Store(callUnopened)
	c.reserved += e.cost
	if ctx.Done() != nil {
		s.stopWatch = context.AfterFunc(ctx, func() {
			s.giveUp(CodeOf(ctx.Err()), streamError(ctx.Err(), method, false))
		})
	}
	c.out.Unlock()
	return s, nil
}

// streamError wraps an error that ended a stream on this side.
func streamError(err error, method string, notRun bool) *Error {
	var e *Error
	if errors.As(err, &e) {
		cause := e.Err
		if errors.Is(cause, io.EOF) {
			cause = io.ErrUnexpectedEOF // a stream that is cut off must not look complete
		}
		return &Error{Code: e.Code, Op: "stream", Addr: method, Message: e.Message, Hint: e.Hint, Detail: e.Detail, Err: cause, notRun: notRun}
	}
	code := CodeOf(err)
	if code == Unknown {
		code = Unavailable
	}
	return &Error{Code: code, Op: "stream", Addr: method, Err: err, notRun: notRun}
}

// Context returns the opener's own context, or on the other side the handler's:
// it ends when the opener resets the stream, when the deadline passes, when the
// connection ends, when a NetConn of it is closed and when the handler returns.
// SetContext may have replaced it.
func (s *Stream) Context() context.Context {
	if s.own != nil {
		return s.own
	}
	return s.ctx
}

// SetContext makes ctx what Context returns from now on, as Request.SetContext does:
// it is for a function around a handler of HandleStream, which calls it before the
// handler and before any other goroutine has the stream. ctx must be derived from
// Context. Send and Recv go on to heed the stream's own. SetContext panics when
// ctx is nil.
func (s *Stream) SetContext(ctx context.Context) {
	if ctx == nil {
		panic("plugwire: SetContext: nil context")
	}
	s.own = ctx
}

// Info describes the stream: the method, the other side, and on the acceptor's
// side the opener's metadata.
func (s *Stream) Info() *Info { return &s.info }

// Send sends a message. It returns when the message was accepted: it will be
// sent in order unless the stream is reset. It waits while the other side is behind by
// its Limits.StreamWindow. msg is not touched after Send returns. The error is
// io.EOF when the other side has ended the stream well, else why it ended; Recv
// tells the same.
func (s *Stream) Send(msg []byte) error { return s.send(s.ctx, msg) }

func (s *Stream) send(ctx context.Context, msg []byte) error {
	c := s.conn
	cost := len(msg) + messageCost
	c.out.Lock()
	if s.ready && cost <= s.left && len(msg) <= min(c.limits.frame, c.limits.message) { // as is usual
		if b := c.out.Extend(frameHeaderLen + len(msg)); b != nil {
			s.left -= cost
			putHeader(b, FrameData, s.back, 0, s.id, len(msg))
			copy(b[frameHeaderLen:], msg)
			c.out.Queue(ctx)
			return nil
		}
	}
	if err := s.sendSlow(ctx, msg); err != nil {
		c.out.Unlock()
		return err
	}
	c.out.Queue(ctx)
	return nil
}

// fitsWindow reports whether a window of which that much is left has place for a
// message. One that is larger may begin when less than a quarter is outstanding,
// for that much may be handled without the other side saying so.
func fitsWindow(window, left, cost int) bool {
	return cost <= left || left > window-window/4
}

// sendSlow sends a message against which something may stand: it waits until
// nothing does. It is called and returns with out's lock held.
func (s *Stream) sendSlow(ctx context.Context, msg []byte) error {
	c := s.conn
	cost := len(msg) + messageCost
	m := message{kind: FrameData, flags: s.back, id: s.id, payload: msg}
	if len(msg) > c.limits.message {
		return s.tooLong(len(msg))
	}
	large := len(msg) > c.limits.frame && cost > c.limits.streamWindow
	free := func() bool { return !s.sending && fitsWindow(c.limits.streamWindow, s.left, cost) }
	fits := func() bool { return c.large.sent == 0 || c.large.sent+cost <= c.limits.requestBytes }
	for waited, queued := false, false; ; {
		if err := s.sendable(ctx); err != nil {
			return err
		}
		if !free() || !waited && !s.gate.Empty() {
			waited = true
			s.ready = false // until nobody waits
			wait := c.waitForPeer
			if s.sending {
				wait = c.waitFor
			}
			if err := wait(ctx, &s.gate, func() bool { return free() || s.err != nil || s.closed }); err != nil {
				return s.wrap(err)
			}
			continue
		}
		if large && (!fits() || !queued && !c.large.gate.Empty()) {
			queued = true
			if err := c.waitFor(ctx, &c.large.gate, func() bool { return fits() || s.err != nil || s.closed }); err != nil {
				return s.wrap(err)
			}
			continue
		}
		if len(msg) > c.limits.frame {
			break
		}
		if ok, err := c.room(ctx, len(msg)+frameHeaderLen); err != nil {
			return s.wrap(err)
		} else if ok {
			break
		}
	}
	s.left -= cost
	if large {
		s.large = cost
		c.large.sent += cost
	}
	var err error
	if len(msg) > c.limits.frame {
		err = s.sendLong(ctx, &m)
	} else {
		c.out.Put(m.append(c.out.Buffer(), len(msg)))
	}
	s.ready = s.err == nil && !s.sending && s.gate.Empty()
	return err
}

// largeMessages counts the messages of several frames that are larger than their
// stream's window, each way, against MaxRequestBytes of the side that holds them.
// Guarded by out's lock.
type largeMessages struct {
	sent int        // cost of those that the other side has not yet received
	held int        // cost of those that this side has not yet received
	gate batch.Gate // those who wait to send one
}

// largeReceived is called when the other side no longer holds the stream's large message.
func (s *Stream) largeReceived() {
	if s.large > 0 {
		s.conn.large.sent -= s.large
		s.large = 0
		s.conn.out.Open(&s.conn.large.gate)
	}
}

// largeArrives counts a large message that begins to arrive.
func (s *Stream) largeArrives(cost int) error {
	c := s.conn
	c.out.Lock()
	defer c.out.Unlock()
	if held := c.large.held; held > 0 && held+cost > c.cfg.Limits.MaxRequestBytes {
		return fmt.Errorf("plugwire: large stream messages of %d bytes not yet received, MaxRequestBytes is %d", held+cost, c.cfg.Limits.MaxRequestBytes)
	}
	if !s.freed && !s.over {
		c.large.held += cost
		s.in.large, s.in.largeEnd = cost, s.in.got.Load()
	}
	return nil
}

// largeHandled is called when the other side learns that this one does not hold
// the stream's large message any more, or has ended the stream.
func (s *Stream) largeHandled() {
	s.conn.large.held -= s.in.large
	s.in.large = 0
}

func (s *Stream) tooLong(n int) error {
	return &Error{Code: ResourceExhausted, Op: "stream", Addr: s.info.Method,
		Message: fmt.Sprintf("message of %d bytes, the other side takes %d", n, s.conn.limits.message)}
}

// sendLong sends a message of several frames, with which no other of the stream mixes.
func (s *Stream) sendLong(ctx context.Context, m *message) error {
	c := s.conn
	s.sending, s.ready = true, false
	begun, err := c.sendFragments(ctx, m, func() bool { return s.err != nil || s.over })
	s.sending = false
	if err != nil {
		switch {
		case !begun:
			s.left += len(m.payload) + messageCost
			s.largeReceived()
		case c.life.ended, s.gaveUp: // after RESET nothing may follow
		default: // LAST may only follow behind it, and the slot be free
			c.out.Put(appendFrameHeader(c.out.Buffer(), FrameHeader{Type: FrameAbort, Flags: s.back, ID: s.id}))
			c.out.Kick()
		}
		if err == errStopped {
			err = s.err
		}
	}
	if s.freed {
		s.freeSlot()
	}
	c.out.Open(&s.gate)
	return s.wrap(err)
}

// wrap gives an error of waiting or writing the stream's name; why the stream has
// ended says more. Called under out's lock.
func (s *Stream) wrap(err error) error {
	switch {
	case err == nil || err == io.EOF:
		return err
	case s.err != nil:
		return s.err
	}
	var e *Error
	if errors.As(err, &e) && e.Op == "stream" {
		return err
	}
	return streamError(err, s.info.Method, false)
}

// sendable returns nil when a message may be sent, having sent what must
// precede the first one: the stream's opening or its header.
func (s *Stream) sendable(ctx context.Context) error {
	if err := ctx.Err(); err != nil && s.err == nil {
		return s.wrap(err)
	}
	if s.err == nil && s.closed {
		return &Error{Code: FailedPrecondition, Op: "stream", Addr: s.info.Method, Message: "Send after CloseSend"}
	}
	return s.begin(ctx, false)
}

// begin sends the opener's OPEN, or the acceptor's header if there is one or
// always is set, unless that was done. It is called and returns with out's lock
// held, which it may give up.
func (s *Stream) begin(ctx context.Context, always bool) error {
	c := s.conn
	for s.err == nil {
		if s.opened && (s.back == 0 || s.spoke || s.header == nil && !always) {
			s.spoke = true
			s.ready = !s.closed && !s.sending && s.gate.Empty()
			return nil
		}
		m := message{kind: FrameOpen, flags: s.back, id: s.id}
		if s.back == 0 {
			if err := c.life.mayOpen(c); err != nil {
				s.endLocked(streamError(err, s.info.Method, true), true, true)
				break
			}
			m.name = s.info.Method
			m.code, _ = c.methodNumber(m.name)
			m.deadline, _ = s.ctx.Deadline()
		}
		m.setMeta(s.header) // which SetHeader has checked
		ok, err := c.room(ctx, m.size()+frameHeaderLen)
		if err != nil {
			return s.wrap(err)
		}
		if ok && !s.over {
			c.out.Put(m.append(c.out.Buffer(), 0))
			s.opened, s.spoke, s.header = true, true, nil
			if s.back == 0 {
				s.slot.state.Store(callStream)
				s.slot.end = c.out.Position()
			}
		}
	}
	return s.err
}

// CloseSend says that no more messages follow from this side: the other side's
// Recv returns io.EOF behind them. Receiving goes on.
func (s *Stream) CloseSend() error { return s.closeSend(s.ctx) }

func (s *Stream) closeSend(ctx context.Context) error {
	c := s.conn
	c.out.Lock()
	defer c.out.Unlock()
	for { // not inside a long message
		if err := s.begin(ctx, false); err != nil {
			if err == io.EOF {
				err = nil
			}
			return err
		}
		if s.closed {
			return nil
		}
		if !s.sending {
			break
		}
		if err := c.waitFor(ctx, &s.gate, func() bool { return !s.sending || s.err != nil }); err != nil && s.err == nil {
			return s.wrap(err)
		}
	}
	s.closed, s.ready = true, false
	c.out.Put(appendFrameHeader(c.out.Buffer(), FrameHeader{Type: FrameClose, Flags: s.back, ID: s.id}))
	c.out.OpenAll(&s.gate)
	if !c.out.Busy() {
		c.out.Kick()
	}
	return nil
}

// Reset gives the stream up in both directions, telling the other side why.
// What is under way is dropped; Send and Recv fail with an error of that code
// on both sides. A handler's own later return value changes nothing.
func (s *Stream) Reset(code Code) {
	if code == OK {
		code = Canceled
	}
	s.giveUp(code, &Error{Code: code, Op: "stream", Addr: s.info.Method, Message: "reset by this side"})
}

// Close gives up what is left of the stream, as Reset with code Canceled does;
// of a stream that has ended nothing is left. It returns nil and does not wait.
func (s *Stream) Close() error {
	s.giveUp(Canceled, &Error{Code: Canceled, Op: "stream", Addr: s.info.Method, Message: "closed by this side"})
	return nil
}

func (s *Stream) giveUp(code Code, why *Error) {
	c := s.conn
	c.out.Lock()
	if s.err == nil && !s.over {
		if s.opened {
			s.gaveUp = true
			c.out.Put(appendFrameHeader(c.out.Buffer(), FrameHeader{Type: FrameReset, Flags: s.back, Code: uint16(code), ID: s.id}))
			s.endLocked(why, true, false)
		} else {
			why.notRun = true
			s.endLocked(why, true, true)
		}
	}
	c.out.Unlock()
	c.out.Flush()
}

// endLocked ends the stream for its user on this side. cut says that what has
// arrived and was not received is dropped, free that the opener's slot is no
// longer needed either. Called under out's lock.
func (s *Stream) endLocked(err error, cut, free bool) {
	if s.err == nil {
		s.setErr(err)
		if ctx, ok := s.ctx.(*requestContext); ok && s.back != 0 { // not of a refused stream
			ctx.cancel(context.Canceled)
		}
	}
	s.in.end(err, cut)
	s.tellLocked() // of what was dropped
	s.conn.out.OpenAll(&s.gate)
	s.conn.out.OpenAll(&s.conn.large.gate)
	if free && !s.freed {
		s.freed = true
		s.largeHandled()
		if !s.sending {
			s.freeSlot()
		}
	}
}

// setErr ends the sending half. Called under out's lock, once.
func (s *Stream) setErr(err error) {
	s.err, s.ready = err, false
	if s.done != nil {
		close(s.done)
	}
}

// Done is closed when the stream is over: the handler has returned, either side has
// reset the stream, the opener's context or the connection has ended. Messages that
// arrived before may still be there for Recv.
func (s *Stream) Done() <-chan struct{} {
	s.conn.out.Lock()
	if s.done == nil {
		s.done = make(chan struct{})
		if s.err != nil {
			close(s.done)
		}
	}
	done := s.done
	s.conn.out.Unlock()
	s.conn.ensureReader() // the caller is about to wait
	return done
}

// Err returns nil until Done is closed, and then why: io.EOF when the other side
// has ended the stream well, else what Send returns.
func (s *Stream) Err() error {
	s.conn.out.Lock()
	defer s.conn.out.Unlock()
	return s.err
}

// freeSlot gives the opener's slot back. Called under out's lock.
func (s *Stream) freeSlot() {
	c := s.conn
	s.over = true
	if s.slot == nil {
		return
	}
	s.largeReceived()
	e := s.slot
	s.slot = nil
	e.stream.Store(nil)
	e.state.Store(callIdle)
	if stop := s.stopWatch; stop != nil {
		stop()
	}
	c.freeSlot(s.id, e)
}

// Header returns the metadata that the other side sent with the beginning of
// the stream: at once on the acceptor's side; the opener waits until the header,
// a message or the end has arrived. It is nil when there was none.
func (s *Stream) Header() (Metadata, error) {
	if s.back != 0 {
		return s.info.Metadata, nil
	}
	if err := s.announce(s.ctx, false); err != nil && err != io.EOF {
		if md := s.in.headerOf(); md != nil { // which arrived before the end
			return md, nil
		}
		return nil, err
	}
	return s.in.awaitHeader(s)
}

// Trailer returns the metadata that came with the end of the stream, on the
// opener's side, once Recv has returned an error; nil before.
func (s *Stream) Trailer() Metadata { return s.in.trailerOf() }

// SetHeader sets the metadata that precedes this side's messages. The opener's
// goes with the opening of the stream, the acceptor's with its first message, at
// SendHeader or at the end. It is an error when that was sent already, or when
// md cannot be sent (see Metadata). md must not change afterwards.
func (s *Stream) SetHeader(md Metadata) error {
	c := s.conn
	m := message{kind: FrameOpen, name: s.info.Method}
	if err := c.setMeta(&m, md); err != nil {
		return err
	}
	c.out.Lock()
	defer c.out.Unlock()
	if s.back != 0 {
		if s.spoke || s.over {
			return s.lateHeader()
		}
		s.header, s.ready = md, false
		return nil
	}
	for s.err == nil && !s.opened {
		more := m.metaLen - (s.slot.cost - messageCost)
		if c.reserved+more <= c.limits.requestBytes || c.reserved == s.slot.cost {
			s.header = md
			s.slot.cost += more
			c.reserved += more
			return nil
		}
		free := func() bool {
			return s.err != nil || s.opened || c.reserved+more <= c.limits.requestBytes || c.reserved == s.slot.cost
		}
		if err := c.waitFor(s.ctx, &c.admit, free); err != nil {
			return s.wrap(err)
		}
	}
	if s.err != nil {
		return s.err
	}
	return s.lateHeader()
}

func (s *Stream) lateHeader() error {
	return &Error{Code: FailedPrecondition, Op: "stream", Addr: s.info.Method, Message: "the header was sent already"}
}

// SendHeader sends what SetHeader has set without waiting for the first
// message, also when there is none. On the opener's side it opens the stream.
func (s *Stream) SendHeader() error { return s.announce(s.ctx, true) }

// SetTrailer sets the metadata that goes with the end of the stream, on the
// acceptor's side; a later one replaces it. On the opener's side it does nothing.
func (s *Stream) SetTrailer(md Metadata) error {
	if err := s.conn.setMeta(&message{kind: FrameOpen, name: s.info.Method}, md); err != nil {
		return err
	}
	s.conn.out.Lock()
	defer s.conn.out.Unlock()
	s.trailer = md
	return nil
}

// announce sends what begin sends, at once.
func (s *Stream) announce(ctx context.Context, always bool) error {
	s.conn.out.Lock()
	err := s.begin(ctx, always)
	s.conn.out.Unlock()
	s.conn.out.Flush()
	return err
}
