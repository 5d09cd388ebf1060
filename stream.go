package plugwire

import (
	"context"
	"errors"
	"io"
	"time"

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
	life batch.Scope     // ends with ctx and with the stream: who waits to send heeds it
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
	writeBy *deadline     // of the NetConn's Write, which passes when err is set; nil until there is one
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

	stopWatch func() bool        // ends the watch over the opener's context, or the handler's deadline
	endLife   context.CancelFunc // the opener's
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
	began := c.begins()
	code, err := c.methodNumber(method)
	if err != nil {
		c.countUnsent(method, true, began, err)
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
		c.countUnsent(method, true, began, err)
		return nil, streamError(err, method, true)
	}
	s.id, s.slot = c.takeSlot()
	c.streamsOpen++
	c.streamsOpened++
	e := s.slot
	if c.shard != nil {
		e.record, e.time = c.shard.record(methodKey{name: method, stream: true}), began
	}
	s.life.Context, s.endLife = context.WithCancel(ctx)
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
		if s.slot != nil {
			s.conn.countEnded(s.slot, endCode(err))
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

// endCode is the code of a stream's end.
func endCode(err error) Code {
	if err == io.EOF {
		return OK
	}
	return CodeOf(err)
}

// setErr ends the sending half. Called under out's lock, once.
func (s *Stream) setErr(err error) {
	s.err, s.ready = err, false
	if s.endLife != nil {
		s.endLife()
	} else if ctx, ok := s.ctx.(*requestContext); ok { // not of a refused stream
		ctx.cancel(context.Canceled)
	}
	s.conn.out.End(&s.life)
	if s.done != nil {
		close(s.done)
	}
	if s.writeBy != nil { // Write may wait where nothing else wakes it
		s.writeBy.set(time.Unix(1, 0))
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
	c.streamsOpen--
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
	if err := s.announce(&s.life, false); err != nil && err != io.EOF {
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
		if err := c.waitFor(&s.life, &c.admit, free); err != nil {
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
func (s *Stream) SendHeader() error { return s.announce(&s.life, true) }

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
