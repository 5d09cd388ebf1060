package plugwire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// What the reader does with the frames of streams, and what becomes of a
// handler of one. docs/PROTOCOL.md, section 9, has the tables that this follows.

// featureStreams is the feature that both sides need for streams.
const featureStreams = "streams"

// streamFrame takes in a frame of a stream: one of type OPEN, DATA, CLOSE or
// RESET, or a CREDIT or ABORT that names a slot of one.
func (rd *reader) streamFrame(h *FrameHeader, b []byte) error {
	c := rd.c
	rd.streamed = true
	switch {
	case !c.streams:
		return fmt.Errorf("plugwire: %v, a feature that was not agreed on", h.Type)
	case h.Flags&(FlagLast|FlagBack) == FlagLast:
		return fmt.Errorf("plugwire: %v with LAST from the opener of slot %d", h.Type, h.ID)
	case h.Flags&(FlagLast|FlagNotRun) == FlagNotRun:
		return fmt.Errorf("plugwire: %v with NOTRUN and without LAST in slot %d", h.Type, h.ID)
	case h.Flags&FlagMeta != 0 && !c.metadata:
		return errNoMetadata
	}
	if h.Type == FrameOpen && h.Flags&FlagBack == 0 {
		return rd.open(h, b)
	}
	s, err := rd.streamOf(h)
	if s == nil {
		return err
	}
	switch h.Type {
	case FrameOpen:
		return s.headerArrived(h, b)
	case FrameData:
		return rd.data(s, h, b)
	case FrameClose, FrameReset:
		return rd.streamEnd(s, h, b)
	case FrameCredit:
		return s.credited(b)
	}
	return s.aborted()
}

// streamOf finds the stream that a frame is for. Both results are nil when the
// frame crossed the stream's end and is dropped.
func (rd *reader) streamOf(h *FrameHeader) (*Stream, error) {
	c := rd.c
	if h.Flags&FlagBack != 0 {
		if e := c.calls.at(h.ID); e != nil && e.state.Load() == callStream {
			return e.stream.Load(), nil
		}
		if c.ended.Load() {
			return nil, nil
		}
		return nil, fmt.Errorf("plugwire: %v in slot %d, where no stream was opened", h.Type, h.ID)
	}
	in := c.serving.at(h.ID)
	switch {
	case in == nil:
	case in.state.Load() == inStream:
		s := in.stream.Load()
		if s == nil {
			return nil, nil // it ends just now
		}
		if s.in.reset && h.Type != FrameCredit {
			return nil, fmt.Errorf("plugwire: %v in slot %d after RESET", h.Type, h.ID)
		}
		return s, nil
	case in.crossing > 0 && in.state.Load() == inIdle:
		if h.Type == FrameData {
			if in.crossing -= int64(h.Length) + 1; in.crossing <= 0 {
				return nil, fmt.Errorf("plugwire: DATA in slot %d goes on after the stream's end", h.ID)
			}
		}
		return nil, nil
	}
	return nil, fmt.Errorf("plugwire: %v in slot %d, where no stream is open", h.Type, h.ID)
}

// open takes in an OPEN and starts the handler.
func (rd *reader) open(h *FrameHeader, b []byte) error {
	c := rd.c
	rd.message()
	in := c.serving.at(h.ID)
	if in == nil {
		if in = c.serving.grow(h.ID); in == nil {
			return fmt.Errorf("plugwire: OPEN in slot %d, MaxCalls is %d", h.ID, c.serving.limit)
		}
	}
	switch {
	case in.state.Load() != inIdle || in.part.total > 0:
		return fmt.Errorf("plugwire: OPEN in slot %d, which is in use", h.ID)
	case c.life.acked.Load():
		return errors.New("plugwire: OPEN after GOAWAY ack")
	}
	pre, _, err := parsePrefix(h, b, c.cfg.Limits.MaxMessage)
	if err != nil {
		return err
	}
	m, err := c.lookUp(h, pre.name)
	if err != nil {
		return err
	}
	in.conn, in.id, in.cost = c, h.ID, int64(pre.metaLen+messageCost)
	if err := c.withinBudget(in.cost); err != nil {
		return err
	}
	r := &Request{conn: c, method: m, in: in, meta: pre.meta}
	if m == nil || m.number == 0 {
		r.name = string(pre.name)
	}
	if pre.hasLeft {
		r.deadline = time.Now().Add(pre.left)
	}
	s := &Stream{conn: c, id: h.ID, back: FlagBack, opened: true, left: c.limits.streamWindow, place: in}
	s.in.init(c)
	if c.shard != nil {
		in.record, in.began = c.servedRecord(m, true), rd.readAt()
	}
	c.streamsTaken.Add(1)
	c.keep(in)
	in.crossing = 0
	var ctx *requestContext
	switch {
	case m == nil:
		s.refusal = &Error{Code: Unimplemented, Message: fmt.Sprintf("no method %q", r.name), notRun: true}
		s.info.Method = r.name
		s.ctx = context.Background()
	case m.stream == nil:
		s.refusal = &Error{Code: Unimplemented, Message: fmt.Sprintf("method %q is called, it is no stream", r.Method()), notRun: true}
		s.info.Method = r.Method()
		s.ctx = context.Background()
	default:
		ctx = c.newContext(r)
		s.ctx, s.info = ctx, ctx.info
		s.handler = m.stream
	}
	s.life.Context = s.ctx
	in.stream.Store(s) // from here on endCalls may end it
	in.state.Store(inStream)
	if ctx != nil && pre.hasLeft { // Recv does not watch the context
		s.stopWatch = ctx.AfterFunc(s.expire)
	}
	if c.ended.Load() { // endCalls may have passed it by
		c.out.Lock()
		s.endLocked(c.Err(), false, true)
		c.out.Unlock()
	}
	c.workers.run(s)
	return nil
}

// expire ends a stream for its handler when the deadline has passed.
func (s *Stream) expire() {
	s.conn.out.Lock()
	defer s.conn.out.Unlock()
	if s.err == nil && !s.over {
		s.endLocked(streamError(context.DeadlineExceeded, s.info.Method, false), true, false)
	}
}

// run is the worker's work on an accepted stream.
func (s *Stream) run() {
	if d, ok := s.ctx.Deadline(); ok && !time.Now().Before(d) {
		s.refusal = &Error{Code: DeadlineExceeded, Message: "the deadline passed before it ran", notRun: true}
	}
	if s.refusal != nil {
		s.finish(s.refusal)
		return
	}
	returned := false
	var err error
	defer func() {
		if returned {
			return
		}
		if p := recover(); p != nil {
			s.finish(s.conn.panicked(s.info.Method, p))
			return
		}
		s.conn.workers.run(&streamExit{s}) // runtime.Goexit ends this goroutine
	}()
	err = s.handler(s)
	returned = true
	s.finish(err)
}

// streamExit ends a stream whose handler ended its goroutine.
type streamExit struct{ s *Stream }

func (x *streamExit) run() { x.s.finish(errHandlerExit) }

// finish sends the stream's last frame, when its handler has returned.
func (s *Stream) finish(err error) {
	c, in := s.conn, s.place
	kind := FrameClose
	if s.refusal != nil {
		kind = FrameReset
	}
	m := c.lastFrame(kind, s.id, err)
	c.out.Lock()
	if s.err == nil && s.header != nil {
		s.begin(context.Background(), false)
	}
	if s.err == nil {
		s.setErr(&Error{Code: FailedPrecondition, Op: "stream", Addr: s.info.Method, Message: "the handler has returned"})
		c.out.OpenAll(&s.gate)
	}
	for s.sending && c.waitFor(context.Background(), &s.gate, func() bool { return !s.sending }) == nil { // another goroutine's message is aborted
	}
	m.meta, m.metaLen = nil, 0
	m.setMeta(s.trailer) // which SetTrailer has checked
	if m.prefixLen()+len(m.payload) > c.limits.frame {
		m.payload = appendErrorPayload(nil, "", nil) // the trailer fills the frame
	}
	for !c.life.ended {
		if ok, err := c.room(context.Background(), m.size()+frameHeaderLen); ok || err != nil {
			break
		}
	}
	if !c.life.ended {
		c.out.Put(m.append(c.out.Buffer(), len(m.payload)))
	}
	c.streamsServed++
	if c.shard != nil {
		c.shard.add(in.record, m.status(), monotonic()-in.began)
	}
	s.over = true
	s.largeReceived()
	s.largeHandled()
	s.in.end(s.err, true)
	c.out.OpenAll(&s.gate)
	if s.stopWatch != nil {
		s.stopWatch()
	}
	in.ctx.Store(nil)
	in.stream.Store(nil)                                                            // what was not received is not to stay
	in.crossing = int64(c.cfg.Limits.StreamWindow) + int64(c.cfg.Limits.MaxMessage) // before the slot is idle
	c.endServing(in)
	turn := c.out.Turn(c.servingCount.Load() == 0)
	c.out.Unlock()
	c.out.FlushTurn(turn)
}

// lastFrame lays out the end of a stream.
func (c *Conn) lastFrame(kind FrameType, id uint32, err error) message {
	if err == nil {
		return message{kind: kind, flags: FlagBack | FlagLast, id: id}
	}
	m := c.endingOf(id, nil, err, nil)
	if kind == FrameClose {
		m.flags &^= FlagNotRun // the handler ran
	}
	if m.code == uint16(OK) {
		m.code = uint16(Unknown) // the opener would take it for success
	}
	m.kind = kind
	m.flags |= FlagLast
	return m
}

// headerArrived takes in the acceptor's header.
func (s *Stream) headerArrived(h *FrameHeader, b []byte) error {
	f := fieldReader{b: b}
	var md Metadata
	if h.Flags&FlagMeta != 0 {
		var err error
		if md, err = f.metaField(); err != nil {
			return err
		}
	}
	switch {
	case h.Flags&FlagDeadline != 0 || len(f.b) > 0:
		return errors.New("plugwire: OPEN with BACK and more than metadata")
	case s.in.closed || s.in.reset:
		return errors.New("plugwire: OPEN with BACK after CLOSE or RESET")
	}
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	if s.in.headed || s.in.got.Load() > 0 {
		return errors.New("plugwire: OPEN with BACK after the stream has begun")
	}
	s.in.headed, s.in.header = true, md
	s.in.start()
	return nil
}

// data takes in a DATA frame, and with it those that follow it in the buffer
// and have the same header but for the length.
func (rd *reader) data(s *Stream, h *FrameHeader, b []byte) error {
	c, in := rd.c, &s.in
	rd.message()
	if in.closed || in.reset {
		return fmt.Errorf("plugwire: DATA in slot %d after CLOSE or RESET", s.id)
	}
	at := rd.r - frameHeaderLen - len(b) // the frame's own place
	joins := in.total > 0
	if h.Flags&^FlagBack != 0 || joins {
		b, err := s.part(h, b)
		if err != nil {
			return err
		}
		if in.total == 0 {
			c.streamGot.Add(1)
		}
		if h.Flags&FlagMeta != 0 { // has no use, and is not counted
			h := *h
			h.Flags &^= FlagMeta
			s.arrived(withoutMeta(&h, in.total, b), nil, false)
			return nil
		}
	} else {
		window, before := c.cfg.Limits.StreamWindow, s.window()
		longest := uint(min(c.cfg.Limits.MaxFrame, c.cfg.Limits.MaxMessage))
		left, messages := before, 0
		rest := rd.buf[at:rd.w]
		kind := binary.LittleEndian.Uint64(rest[4:])
		for len(rest) >= frameHeaderLen && binary.LittleEndian.Uint64(rest[4:]) == kind {
			n := int(binary.LittleEndian.Uint32(rest))
			if uint(n) > longest || n > len(rest)-frameHeaderLen {
				if messages == 0 {
					return fmt.Errorf("plugwire: DATA of %d bytes, MaxMessage is %d", n, longest)
				}
				break
			}
			if !fitsWindow(window, left, n+messageCost) {
				if messages == 0 {
					return s.overrun()
				}
				break
			}
			left -= n + messageCost
			messages++
			rest = rest[frameHeaderLen+n:]
		}
		rd.r = rd.w - len(rest)
		in.got.Add(uint64(before - left))
		c.streamGot.Add(uint64(messages))
	}
	frames := rd.buf[at:rd.r]
	s.arrived(frames, rd.give(len(frames)), joins)
	return nil
}

// withoutMeta lays out the first frame of a message again.
func withoutMeta(h *FrameHeader, total int, payload []byte) []byte {
	var lead []byte
	if h.Flags&FlagBegin != 0 {
		lead = binary.LittleEndian.AppendUint32(nil, uint32(total))
	}
	h.Length = uint32(len(lead) + len(payload))
	return append(append(appendFrameHeader(nil, *h), lead...), payload...)
}

// window returns the cost that the other side may still send.
func (s *Stream) window() int {
	return s.conn.cfg.Limits.StreamWindow - int(s.in.got.Load()-s.in.handled.Load())
}

func (s *Stream) overrun() error {
	return fmt.Errorf("plugwire: messages of %d bytes not yet received in slot %d, StreamWindow is %d",
		s.in.got.Load()-s.in.handled.Load(), s.id, s.conn.cfg.Limits.StreamWindow)
}

// part checks a frame of a message of several, or one with metadata, and
// returns its payload proper.
func (s *Stream) part(h *FrameHeader, b []byte) ([]byte, error) {
	c, in := s.conn, &s.in
	if in.total > 0 {
		if h.Flags&(FlagBegin|FlagMeta) != 0 {
			return nil, errBeginTwice
		}
		whole, err := checkPart(h, in.have, in.total, len(b))
		if err == nil && in.total+messageCost > c.cfg.Limits.StreamWindow {
			err = s.largeGrows(len(b))
		}
		if in.have += len(b); whole {
			in.total, in.have = 0, 0
		}
		return b, err
	}
	if h.Flags&(FlagBegin|FlagMore) == FlagMore {
		return nil, errNoBegin
	}
	pre, payload, err := parsePrefix(h, b, c.cfg.Limits.MaxMessage)
	if err != nil {
		return nil, err
	}
	cost := max(pre.total, len(payload)) + messageCost
	if !fitsWindow(c.cfg.Limits.StreamWindow, s.window(), cost) {
		return nil, s.overrun()
	}
	in.got.Add(uint64(cost))
	if pre.total > 0 && cost > c.cfg.Limits.StreamWindow {
		err := s.largeArrives(cost)
		if err == nil {
			err = s.largeGrows(len(payload))
		}
		if err != nil {
			return nil, err
		}
	}
	in.total, in.have = pre.total, len(payload)
	return payload, nil
}

// streamEnd takes in CLOSE and RESET, in either direction.
func (rd *reader) streamEnd(s *Stream, h *FrameHeader, b []byte) error {
	c, in := rd.c, &s.in
	last := h.Flags&FlagLast != 0
	f := fieldReader{b: b}
	var trailer Metadata
	if h.Flags&FlagMeta != 0 {
		var err error
		if trailer, err = f.metaField(); err != nil {
			return err
		}
	}
	why := &Error{Code: Code(h.Code), Op: "stream", Addr: s.info.Method, notRun: h.Flags&FlagNotRun != 0}
	if len(f.b) > 0 {
		text, detail, err := parseErrorPayload(f.b)
		if err != nil {
			return err
		}
		why.Message = string(text)
		if len(detail) > 0 {
			why.Detail = append([]byte(nil), detail...)
		}
	}
	switch {
	case in.reset && !last, in.closed && !last && h.Type == FrameClose:
		return fmt.Errorf("plugwire: %v in slot %d after %s", h.Type, s.id, map[bool]string{true: "RESET", false: "CLOSE"}[in.reset])
	case h.Type == FrameClose && in.total > 0:
		return fmt.Errorf("plugwire: CLOSE in slot %d inside a message", s.id)
	}
	if h.Type == FrameReset && h.Code == 0 {
		why.Code = Canceled
	}
	c.out.Lock()
	defer c.out.Unlock()
	switch {
	case last:
		in.mu.Lock()
		in.trailer = trailer
		in.mu.Unlock()
		var err error = why
		if h.Type == FrameClose && h.Code == 0 {
			err = io.EOF
		}
		s.endLocked(err, h.Type == FrameReset, true)
	case h.Type == FrameClose:
		in.closed = true
		in.end(io.EOF, false)
	default:
		cut := !in.closed // what is complete can still be received
		in.closed, in.reset, in.total = true, true, 0
		s.endLocked(why, cut, false)
	}
	return nil
}

// credited takes in a CREDIT: more may be sent.
func (s *Stream) credited(b []byte) error {
	if len(b) != 4 {
		return fmt.Errorf("plugwire: CREDIT of %d bytes for slot %d", len(b), s.id)
	}
	n := binary.LittleEndian.Uint32(b)
	c := s.conn
	c.out.Lock()
	defer c.out.Unlock()
	if n == 0 || uint64(n) > uint64(c.limits.streamWindow-s.left) {
		return fmt.Errorf("plugwire: CREDIT of %d for slot %d, where %d is outstanding", n, s.id, c.limits.streamWindow-s.left)
	}
	c.reader.message() // it tells of some
	if s.left += int(n); s.left >= 0 {
		s.largeReceived()
	}
	c.out.Open(&s.gate)
	return nil
}

// aborted takes in an ABORT: the message that has begun to arrive ends here.
func (s *Stream) aborted() error {
	in := &s.in
	if in.total == 0 {
		return fmt.Errorf("plugwire: ABORT in slot %d, where no message was begun", s.id)
	}
	in.total, in.have = 0, 0
	s.arrived(appendFrameHeader(nil, FrameHeader{Type: FrameAbort}), nil, false)
	return nil
}

// arrived passes frames, and the buffer that they fill, on to who receives; dropped
// says that nobody does.
func (s *Stream) arrived(frames []byte, owner *readBuffer, joins bool) (dropped bool) {
	dropped, hungUp := s.in.put(frames, owner, joins)
	if dropped {
		s.tell()
	}
	if hungUp {
		s.Close()
	}
	return dropped
}
