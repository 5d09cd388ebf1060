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

// noteRun handles the one-way message at rd.r and those behind it that have the
// same header but for the length. Between two handlers there is a single atomic
// operation, which says that the first has returned and the second runs: a
// stand-in goes on at the mark of the epoch that it took. ran is false when the
// first message needs the long way; mine is false when the role was taken over.
func (rd *reader) noteRun(m *method) (ran, mine bool) {
	c, n := rd.c, &rd.c.oneWay
	buf := rd.buf[:rd.w]
	kind := binary.LittleEndian.Uint64(buf[rd.r+4:])
	longest := uint(min(c.cfg.Limits.MaxFrame, c.cfg.Limits.MaxMessage))
	left := c.noteWindow(0)
	// The next mark is kept in single variables: a copy of the struct would wait
	// for the stores of its parts.
	end, noteBytes, noteMsgs, gotBytes, gotMsgs := rd.r, rd.noteBytes, rd.noteMsgs, n.gotBytes, n.gotMsgs
	room := rd.replyRoom()
	rd.served = true
	rd.message()
	rd.in, rd.current = nil, m
	r := &rd.note
	r.conn, r.method, r.name, r.reader = c, m, "", rd

	stats := c.placementOf(m)
	runs, most := 0, slowRuns-stats.runs
	running := false
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
	for ; runs < most && len(buf)-end >= frameHeaderLen && binary.LittleEndian.Uint64(buf[end+4:]) == kind; runs++ {
		length := int(binary.LittleEndian.Uint32(buf[end:]))
		at := end + frameHeaderLen
		if uint(length) > longest || length > len(buf)-at || length+messageCost > left {
			break
		}
		left -= length + messageCost
		r.payload = buf[at : at+length : at+length]
		end = at + length
		gotBytes += uint64(length)
		gotMsgs++
		before := rd.word
		if runs == 0 {
			before = c.role.Load()
		} else {
			noteBytes += uint64(rd.noteSize)
			noteMsgs++
		}
		word := nextRole(before, roleHandler)
		mark := &rd.marks[markOf(word)]
		mark.r, mark.noteBytes, mark.noteMsgs, mark.gotBytes, mark.gotMsgs = end, noteBytes, noteMsgs, gotBytes, gotMsgs
		if runs == 0 {
			c.role.Store(word)
			rd.word = word
			if !c.watched.Load() {
				c.watch()
			}
		} else {
			if !c.role.CompareAndSwap(rd.word, word) {
				return true, rd.noted()
			}
			rd.word = word
		}
		rd.noteSize = length
		running = true
		m.handler.ServeCall(r, room)
		running = false
		if r.ctx != nil {
			r.release()
			r.reader = rd
		}
	}
	if runs == 0 {
		return false, true
	}
	if mine = rd.noted(); mine {
		stats.runs += runs
	}
	return true, mine
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
