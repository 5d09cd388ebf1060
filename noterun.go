package plugwire

import "encoding/binary"

// plainNote returns the method of a one-way message of one frame whose handler
// may run inline at once, or nil. It is the common case, which noteRun makes quick.
func (rd *reader) plainNote(h *FrameHeader) *method {
	c := rd.c
	n := &c.oneWay
	t := c.mux.table.Load()
	if h.Flags != 0 || h.Code == 0 || int(h.Code) > len(t.methods) || h.ID != 0 ||
		n.large.total > 0 || n.busy.Load() || c.life.acked.Load() {
		return nil
	}
	m := t.methods[h.Code-1]
	s := c.placementOf(m)
	if s.workerRuns > 0 || m.handler == nil || c.cfg.rate != nil {
		return nil
	}
	if s.runs >= slowRuns {
		s.runs, s.caught = 0, 0
	}
	return m
}

const (
	// longStretch is how many one-way messages a stretch has at most. Taken together
	// their handlers count as one that takes long when they need a millisecond.
	longStretch = 32
	// stretchShare is the part of the window that it has at most: while one of its
	// handlers waits, the other side is not told that those before have returned.
	stretchShare = 64
)

// A stretch is a number of one-way messages that lie behind one another in the
// buffer and have the same header but for the length. Their handlers run one after
// the other, without a change of the role word between them. When the role is taken
// over meanwhile, the stand-in goes on behind all of them, and those whose handlers
// have not begun are queued, or dropped if it is Close that takes over.
type stretch struct {
	kind uint64 // of the header, all but the length
	most int    // messages; 0 when there is no stretch
	left int    // cost that they may have together
}

// next returns the length of the frame at the start of b if it goes on with the
// stretch, of which that much may be left, else 0.
func (s *stretch) next(b []byte, longest uint, left int) int {
	if len(b) < frameHeaderLen || binary.LittleEndian.Uint64(b[4:]) != s.kind {
		return 0
	}
	n := int(binary.LittleEndian.Uint32(b))
	if uint(n) > longest || n > len(b)-frameHeaderLen || n+messageCost > left {
		return 0
	}
	return frameHeaderLen + n
}

// longestNote is the largest one-way message of one frame.
func (c *Conn) longestNote() uint { return uint(min(c.cfg.Limits.MaxFrame, c.cfg.Limits.MaxMessage)) }

// walk returns where so many messages of the stretch, or all that there are, end
// in the buffer, and what they count.
func (rd *reader) walk(most int) (end int, bytes, msgs uint64) {
	k := &rd.mark
	end = k.r
	left, longest := k.stretch.left, rd.c.longestNote()
	for msgs < uint64(most) {
		n := k.stretch.next(rd.buf[end:rd.w], longest, left)
		if n == 0 {
			break
		}
		end += n
		left -= n - frameHeaderLen + messageCost
		bytes += uint64(n - frameHeaderLen)
		msgs++
	}
	return end, bytes, msgs
}

// noteRun handles a stretch that begins with the one-way message at rd.r. ran is
// false when that needs the long way; mine is false when the role was taken over.
func (rd *reader) noteRun(m *method) (ran, mine bool) {
	c := rd.c
	b := rd.buf[rd.r:rd.w]
	stats := c.placementOf(m)
	most, longest := min(slowRuns-stats.runs, longStretch), c.longestNote()
	left := min(c.noteWindow(0), max(int(rd.head.Length)+messageCost, c.cfg.Limits.OneWayWindow/stretchShare))
	s := stretch{binary.LittleEndian.Uint64(b[4:]), most, left}
	if s.next(b, longest, left) == 0 {
		return false, true
	}
	room := rd.replyRoom()
	rd.served = true
	rd.message()
	rd.in = nil
	r := &rd.note
	r.conn, r.method, r.name = c, m, ""
	rd.begun = 0
	rd.enter(m, r, s)
	word := rd.word
	running := true
	defer func() {
		if !running {
			return
		}
		if p := recover(); p != nil {
			c.panicked(r.Method(), p)
			ran, mine = true, rd.noted()
			return
		}
		c.workers.run(&exited{rd: rd, c: c})
	}()
	for begun := 1; begun <= most; begun++ {
		size := s.next(b, longest, left)
		if size == 0 {
			break
		}
		left -= size - frameHeaderLen + messageCost
		r.payload = b[frameHeaderLen:size:size]
		b = b[size:]
		rd.begun = begun
		m.handler.ServeCall(r, room)
		if r.ctx != nil {
			r.release()
			r.reader = rd
		}
		if c.role.Load() != word {
			break
		}
	}
	running = false
	begun := rd.begun
	end, bytes := rd.w-len(b), s.left-left-begun*messageCost
	if mine = rd.stretchEnded(end, uint64(bytes), uint64(begun)); mine {
		stats.runs += begun
	}
	return true, mine
}

// stretchEnded goes on behind the messages whose handlers have returned, which end
// there. When the role was taken over, the rest of the stretch is handled here, then
// what the stand-in has queued.
func (rd *reader) stretchEnded(end int, bytes, msgs uint64) (mine bool) {
	c, n := rd.c, &rd.c.oneWay
	rd.clock = 0
	rd.note.release()
	if rd.leave() {
		rd.r = end
		rd.noteBytes += bytes
		rd.noteMsgs += msgs
		n.gotBytes += bytes
		n.gotMsgs += msgs
		return true
	}
	all, _, _ := rd.walk(rd.mark.stretch.most)
	if rd.dropRest {
		all = end
	}
	var rest []notes
	for b := rd.buf[end:all]; len(b) > 0; {
		size := frameHeaderLen + int(binary.LittleEndian.Uint32(b))
		rest = addNote(rest, note{method: rd.current, payload: b[frameHeaderLen:size]})
		b = b[size:]
	}
	rd.releaseBuffer()
	n.mu.Lock()
	n.queue = append(rest, n.queue...)
	n.mu.Unlock()
	c.noteHandled(bytes, msgs)
	c.flushIfDue()
	c.noteQueue()
	return false
}

// noteWindow returns the cost of the messages that the other side may still
// have sent. What was handled is only looked up when it matters to somebody who
// needs that much.
func (c *Conn) noteWindow(need int) int {
	window := c.cfg.Limits.OneWayWindow
	if left := window - c.noteOutstanding(); left >= window/2 && left >= need {
		return left
	}
	c.reader.settleNotes()
	n := &c.oneWay
	c.out.Lock()
	n.seenBytes, n.seenMsgs = n.handledBytes, n.handledMsgs
	c.out.Unlock()
	return window - c.noteOutstanding()
}

// noteOutstanding is the cost of what has arrived and, as of the last look, was
// not handled.
func (c *Conn) noteOutstanding() int {
	n := &c.oneWay
	return int(n.gotBytes - n.seenBytes + messageCost*(n.gotMsgs-n.seenMsgs))
}
