package plugwire

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// streamInput is the receiving half of a stream: frames that the reader has
// taken in and Recv has not. They are copied whole, header included, many at a
// time, and Recv takes all that there are at once, so that a message costs
// neither of them a lock.
type streamInput struct {
	conn *Conn

	mu      sync.Mutex
	queue   []segment     // frames of DATA, and ABORT
	spare   []byte        // for the next small segment
	tail    int           // 1 + where in the last segment its last frame begins, if MORE of that follow; else 0
	waiting bool          // Recv sleeps
	ready   chan struct{} // and is woken by a token
	err     error         // what Recv returns behind the queue
	hungUp  bool          // the other side is to learn that nobody receives when it sends something
	begun   bool          // a header, a message or the end has arrived
	header  Metadata      // of the other side
	trailer Metadata
	heard   chan struct{} // closed when begun; nil until somebody waits for that

	cutOff  atomic.Bool   // err takes effect at once: messages are dropped, and counted as handled; stored with mu held
	handled atomic.Uint64 // cost of the messages that were received or dropped

	// Of the holder of the reading role.
	got    atomic.Uint64 // cost of the messages that have begun to arrive; others may look
	total  int           // of the message that arrives in several frames, else 0
	have   int           // of it
	headed bool          // OPEN with BACK has arrived
	closed bool          // CLOSE has arrived
	reset  bool          // RESET has arrived

	// Guarded by out's lock.
	large     int    // cost of the large message that was not yet received
	largeHeld int    // bytes of it that the Server's budget counts
	largeEnd  uint64 // got behind it

	// Of the one who receives.
	receiving bool
	cur       []segment // taken from the queue
	at, pos   int       // the segment, and the place in it, of the next frame
	part      []byte    // what a call that failed has of a message whose rest is still to come
	partLen   int       // the announced total of a message whose rest is still to come
	count     int       // cost of received messages that handled does not have yet
	expect    int       // length of the next message, if it is like the last large one; else 0
	place     *directInput
}

func (in *streamInput) init(c *Conn) { in.conn, in.ready = c, make(chan struct{}, 1) }

// wake wakes Recv, which no longer expects anything. Called with mu held.
func (in *streamInput) wake() {
	if in.waiting {
		in.waiting = false
		in.conn.expecting.Add(-1)
		in.ready <- struct{}{}
	}
}

// start marks that something has arrived. Called with mu held.
func (in *streamInput) start() {
	in.begun = true
	if in.heard != nil {
		close(in.heard)
		in.heard = nil
	}
}

// end makes err what Recv returns behind what has arrived, or with cut at once.
func (in *streamInput) end(err error, cut bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.err == nil {
		in.err = err
	}
	if cut {
		in.cutOff.Store(true)
		in.queue = nil
		in.handled.Store(in.got.Load())
	}
	in.start()
	in.wake()
}

// hangUp has what follows dropped, and the stream reset for it.
func (s *Stream) hangUp() {
	in := &s.in
	in.mu.Lock()
	in.hungUp = true
	in.mu.Unlock()
	in.end(net.ErrClosed, true)
	s.tell() // who waits for the window would never send one
	s.conn.out.Flush()
}

// put adds frames and wakes Recv; dropped says that nobody will receive them.
// owner is the buffer that they fill and that is given away with them, or nil;
// joins says that it is one frame, which continues a message. No frames are a
// message that has been read to where Recv wants it.
func (in *streamInput) put(frames []byte, owner *readBuffer, joins bool) (dropped, hungUp bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.begun {
		in.start()
	}
	if in.cutOff.Load() {
		in.handled.Store(in.got.Load())
		if owner != nil {
			readBuffers.Put(owner)
		}
		return true, in.hungUp
	}
	if len(frames) > 0 {
		in.add(frames, owner, joins)
		in.wake()
	}
	return false, false
}

// add puts frames at the end of the queue. Called with mu held.
func (in *streamInput) add(frames []byte, owner *readBuffer, joins bool) {
	more := frames[5]&byte(FlagMore) != 0
	if owner != nil {
		in.queue, in.tail = append(in.queue, segment{frames, owner, true}), 0
		return
	}
	var last *segment
	if n := len(in.queue); n > 0 && !in.queue[n-1].full {
		last = &in.queue[n-1]
	}
	if joins && in.tail > 0 && last != nil && in.extend(last, frames[frameHeaderLen:]) {
		b := last.b[in.tail-1:] // a part of the frame before: fragments may be tiny
		binary.LittleEndian.PutUint32(b, uint32(len(b)-frameHeaderLen))
		b[5] = b[5]&^byte(FlagMore) | frames[5]&byte(FlagMore)
		if !more {
			in.tail = 0
		}
		return
	}
	at := 0
	if last != nil {
		at = len(last.b)
	}
	switch {
	case last != nil && in.extend(last, frames):
	case len(frames) <= streamKeep:
		at = 0
		in.queue = append(in.queue, segment{b: append(in.spare[:0], frames...)})
		in.spare = nil
	default:
		at = 0
		owner = readBuffers.Get().(*readBuffer)
		in.queue = append(in.queue, segment{b: append(owner[:0], frames...), owner: owner})
	}
	if in.tail = 0; more {
		in.tail = at + 1
	}
}

// extend appends to a segment if that keeps it in proportion to what it holds.
func (in *streamInput) extend(g *segment, b []byte) bool {
	if cap(g.b)-len(g.b) < len(b) && (g.owner != nil || len(g.b)+len(b) > maxFrame) {
		return false
	}
	g.b = append(g.b, b...)
	return true
}

// streamKeep is the largest buffer that a stream keeps while nothing arrives.
const streamKeep = 4 << 10

// release gives back the segment that has been taken in. Called by the one who receives.
func (in *streamInput) release(g *segment) {
	if g.owner == nil && cap(g.b) <= streamKeep {
		in.mu.Lock()
		in.spare = g.b[:0]
		in.mu.Unlock()
	}
	g.release()
}

// Recv returns the next message, which is the caller's. Behind the last one the
// error is io.EOF when the other side has closed its direction (CloseSend) or
// ended the stream well, else why it ended. Trailer is there when that is known.
func (s *Stream) Recv() ([]byte, error) { return s.AppendRecv(nil) }

// AppendRecv is Recv into a slice of the caller's: the message is appended to dst.
// All of dst's capacity may be written to, beyond the message and also on an error.
func (s *Stream) AppendRecv(dst []byte) ([]byte, error) {
	in := &s.in
	if in.receiving { // no lock: it would cost as much as all else
		panic("plugwire: two goroutines receive from one stream at once")
	}
	if msg, ok := s.plain(); ok {
		return append(dst, msg...), nil
	}
	in.receiving = true
	dst, err := s.recv(dst, nil)
	in.receiving = false
	return dst, err
}

// plain takes the next message if it is there in one frame without anything else,
// as is usual.
func (s *Stream) plain() (msg []byte, ok bool) {
	in := &s.in
	if in.at == len(in.cur) || in.partLen > 0 || in.cutOff.Load() {
		return nil, false
	}
	b := in.cur[in.at].b[in.pos:]
	if len(b) < frameHeaderLen || FrameType(b[4]) != FrameData || FrameFlags(b[5])&^FlagBack != 0 {
		return nil, false
	}
	end := frameHeaderLen + int(binary.LittleEndian.Uint32(b))
	msg = b[frameHeaderLen:end]
	in.pos += end
	if len(msg) >= directLeast {
		in.expect = len(msg)
	}
	in.count += len(msg) + messageCost
	s.credit()
	return msg, true
}

// recv is AppendRecv that gives up, with errRecvStopped, when stop is closed.
func (s *Stream) recv(dst []byte, stop <-chan struct{}) ([]byte, error) {
	in := &s.in
	start, given := len(dst), dst
	if part := in.part; len(part) > 0 {
		if in.part = nil; start == 0 {
			dst = part
		} else {
			dst = append(dst, part...)
		}
	}
	for {
		for in.at < len(in.cur) && !in.cutOff.Load() {
			if msg, ok := s.plain(); ok {
				return append(dst, msg...), nil
			}
			g := &in.cur[in.at]
			if in.pos == len(g.b) {
				in.release(g)
				in.at, in.pos = in.at+1, 0
				continue
			}
			b := g.b[in.pos:]
			end := frameHeaderLen + int(binary.LittleEndian.Uint32(b))
			flags := FrameFlags(b[5])
			payload := b[frameHeaderLen:end]
			in.pos += end
			if FrameType(b[4]) == FrameAbort {
				in.count += in.partLen + messageCost
				dst, in.partLen = given, 0
				s.credit()
				continue
			}
			f := fieldReader{b: payload}
			if flags&FlagBegin != 0 {
				in.partLen = int(f.u32())
			}
			dst = appendGrown(dst, f.b, in.partLen-(len(dst)-start)-len(f.b))
			if flags&FlagMore != 0 {
				continue
			}
			in.count += len(dst) - start + messageCost
			in.partLen = 0
			s.credit()
			return dst, nil
		}
		d := s.direct(dst)
		err := s.refill(stop, d)
		if got, ok := d.take(dst); ok {
			s.credit()
			return got, nil
		}
		if err != nil {
			if in.partLen > 0 {
				in.keep(dst[start:], given)
			}
			return given, err
		}
	}
}

// keep has the next call go on with the part of a message, which may lie in the
// capacity of what the caller has given.
func (in *streamInput) keep(part, given []byte) {
	if free := given[len(given):cap(given)]; len(part) > 0 && len(free) > 0 && &part[0] == &free[0] {
		part = append([]byte(nil), part...)
	}
	in.part = part
}

// refill takes what is in the queue, waiting until there is something, or in d.
func (s *Stream) refill(stop <-chan struct{}, d *directInput) error {
	in, c := &s.in, s.conn
	for {
		in.mu.Lock()
		switch {
		case in.err != nil && in.cutOff.Load():
			in.cur, in.at, in.pos, in.partLen = nil, 0, 0, 0
			fallthrough
		case in.err != nil && len(in.queue) == 0:
			defer in.mu.Unlock()
			in.cur, in.at, in.pos = nil, 0, 0
			return in.err
		case len(in.queue) > 0:
			in.cur, in.queue, in.at, in.pos, in.tail = in.queue, in.cur[:0], 0, 0, 0
			in.mu.Unlock()
			return nil
		}
		in.mu.Unlock()
		if s.back != 0 {
			c.out.Flush()
		} else if err := s.announce(&s.life, false); err != nil && !in.there() { // perhaps it only receives
			return err
		}
		over := func() bool {
			there := d != nil && d.done || in.there()
			if there {
				c.expecting.Add(-1)
			}
			return there
		}
		if c.expecting.Add(1) == 1 && c.borrow(over, d) || !in.startWaiting() {
			if d != nil && d.done {
				return nil
			}
			continue
		}
		c.ensureReader()
		select {
		case <-in.ready:
		case <-stop:
			in.stopWaiting()
			return errRecvStopped
		}
	}
}

// errRecvStopped is what recv returns when it was stopped.
var errRecvStopped = errors.New("plugwire: stopped")

// there reports whether there is something for Recv.
func (in *streamInput) there() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.thereLocked()
}

func (in *streamInput) thereLocked() bool { return len(in.queue) > 0 || in.err != nil }

// startWaiting says that Recv waits, unless something is there: then it no
// longer expects anything, and false is returned.
func (in *streamInput) startWaiting() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.thereLocked() {
		in.conn.expecting.Add(-1)
		return false
	}
	in.waiting = true
	return true
}

// stopWaiting takes that back.
func (in *streamInput) stopWaiting() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.waiting { // the token has been sent
		<-in.ready
		return
	}
	in.waiting = false
	in.conn.expecting.Add(-1)
}

// credit tells the other side of received messages when they are a quarter of
// the window. Called by the one who receives.
func (s *Stream) credit() {
	if s.in.count >= s.conn.cfg.Limits.StreamWindow/4 {
		s.giveCredit()
	}
}

// received is the cost of the messages that were received. Called by the one who
// receives; once messages are dropped it may be more.
func (in *streamInput) received() uint64 { return in.handled.Load() + uint64(in.count) }

// giveCredit is apart from credit for that to cost no call.
func (s *Stream) giveCredit() {
	in := &s.in
	in.mu.Lock()
	if !in.cutOff.Load() { // else the reader does it
		in.handled.Add(uint64(in.count))
	}
	in.mu.Unlock()
	in.count = 0
	s.tell()
	s.conn.out.Flush()
}

// tell has the other side told of handled messages when they are a quarter of the window.
func (s *Stream) tell() {
	s.conn.out.Lock()
	defer s.conn.out.Unlock()
	s.tellLocked()
}

// tellLocked is tell under out's lock.
func (s *Stream) tellLocked() {
	c := s.conn
	n := s.in.handled.Load() - s.told
	if s.over || s.freed || c.life.ended || n < uint64(c.cfg.Limits.StreamWindow)/4 {
		return
	}
	s.told += n
	s.due += int(n)
	if s.told >= s.in.largeEnd {
		s.largeHandled()
	}
	if !s.listed {
		s.listed = true
		c.dirty = append(c.dirty, s)
	}
	c.out.Signal()
}

// appendStreamCredit appends what is due to be said to the other side's senders.
// Called under out's lock.
func (c *Conn) appendStreamCredit(b []byte) []byte {
	for i, s := range c.dirty {
		c.dirty[i], s.listed = nil, false
		if s.due > 0 && !s.over {
			b = appendFrameHeader(b, FrameHeader{Type: FrameCredit, Flags: s.back, ID: s.id, Length: 4})
			b = binary.LittleEndian.AppendUint32(b, uint32(s.due))
		}
		s.due = 0
	}
	c.dirty = c.dirty[:0]
	return b
}

// awaitHeader waits until the stream has begun on the other side.
func (in *streamInput) awaitHeader(s *Stream) (Metadata, error) {
	in.mu.Lock()
	for !in.begun {
		if in.heard == nil {
			in.heard = make(chan struct{})
		}
		heard := in.heard
		in.mu.Unlock()
		s.conn.expecting.Add(1)
		s.conn.ensureReader()
		<-heard // the end of the context or the connection closes it too
		s.conn.expecting.Add(-1)
		in.mu.Lock()
	}
	defer in.mu.Unlock()
	if in.header == nil && in.err != nil && in.err != io.EOF {
		return nil, in.err
	}
	return in.header, nil
}

func (in *streamInput) headerOf() Metadata {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.header
}

func (in *streamInput) trailerOf() Metadata {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.trailer
}
