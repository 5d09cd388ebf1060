package plugwire

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/plugwire/plugwire/internal/batch"
)

// Send sends a message. It returns when the message was accepted: it will be
// sent in order unless the stream is reset. It waits while the other side is behind by
// its Limits.StreamWindow. msg is not touched after Send returns. The error is
// io.EOF when the other side has ended the stream well, else why it ended; Recv
// tells the same.
func (s *Stream) Send(msg []byte) error { return s.send(&s.life, msg) }

func (s *Stream) send(ctx context.Context, msg []byte) error {
	c := s.conn
	cost := len(msg) + messageCost
	if !c.out.TryLock() {
		c.out.Lock()
	}
	if s.ready && cost <= s.left && len(msg) <= min(c.limits.frame, c.limits.message) { // as is usual
		if b := c.out.Extend(frameHeaderLen + len(msg)); b != nil {
			s.left -= cost
			c.streamSent++
			putHeader(b, FrameData, s.back, 0, s.id, len(msg))
			copy(b[frameHeaderLen:], msg)
			if c.out.Attended() { // nearly always: a call costs too
				c.out.Unlock()
			} else {
				c.out.Queue(ctx)
			}
			return nil
		}
	}
	if err := s.sendSlow(ctx, msg); err != nil {
		c.out.Unlock()
		return err
	}
	if len(msg) <= c.limits.frame {
		c.out.Put(append(appendHeader(c.out.Buffer(), FrameData, s.back, 0, s.id, len(msg)), msg...))
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

// sendSlow is for a message against which something may stand: it waits until
// nothing does. One of several frames it sends, for another there is room when it
// returns. It is called and returns with out's lock held.
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
			if !waited && !s.sending {
				c.stalls.Streams++
			}
			waited = true
			s.ready = false // until nobody waits
			if err := c.wait(ctx, &s.gate, func() bool { return free() || s.err != nil || s.closed }, !s.sending); err != nil {
				return s.wrap(err)
			}
			continue
		}
		if large && (!fits() || !queued && !c.large.gate.Empty()) {
			queued = true
			c.stalls.Streams++
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
	}
	s.ready = s.err == nil && !s.sending && s.gate.Empty()
	if err == nil {
		c.streamSent++
	}
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

// largeGrows counts a part of the large message against the Server's budget. As
// with a one-way message, the connection ends where there is no room for it.
func (s *Stream) largeGrows(n int) error {
	c := s.conn
	if c.cfg.budget == nil {
		return nil
	}
	c.out.Lock()
	defer c.out.Unlock()
	if s.in.large == 0 { // nobody will receive it
		return nil
	}
	if !c.arrives(n) {
		return errServerFull
	}
	s.in.largeHeld += n
	return nil
}

// largeHandled is called when the other side learns that this one does not hold
// the stream's large message any more, or has ended the stream.
func (s *Stream) largeHandled() {
	c := s.conn
	c.large.held -= s.in.large
	if s.in.largeHeld > 0 {
		c.cfg.budget.give(c.arrived(s.in.largeHeld))
	}
	s.in.large, s.in.largeHeld = 0, 0
}

func (s *Stream) tooLong(n int) error {
	return &Error{Code: ResourceExhausted, Op: "stream", Addr: s.info.Method,
		Message: fmt.Sprintf("message of %d bytes, the other side takes %d", n, s.conn.limits.message)}
}

// sendLong sends a message of several frames, with which no other of the stream mixes.
func (s *Stream) sendLong(ctx context.Context, m *message) error {
	c := s.conn
	s.sending, s.ready = true, false
	begun, err := c.sendFragments(ctx, m, func(bool) bool { return s.err != nil || s.over })
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
func (s *Stream) CloseSend() error { return s.closeSend(&s.life) }

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
