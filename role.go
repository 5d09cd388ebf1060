package plugwire

import (
	"runtime"
)

// Reading. One goroutine at a time holds the reading role: it alone reads the
// connection and takes in frames. The role word holds an epoch, which changes
// whenever user code starts or the role changes hands, and one of these states.
const (
	roleFree     = iota // nobody reads; whoever needs something to be read takes the role
	roleReading         // a reader's goroutine reads, or takes in frames
	roleHandler         // a reader's goroutine is in a handler: a stand-in may take the role
	roleBorrowed        // a goroutine that waits alone reads what it waits for
	roleMask     = 3
)

// stayBatches is for how many batches of streams' frames the role is kept after
// frames had to wait because it was free: whoever received was busy with a message.
const stayBatches = 256

// nextRole returns the role word with the given state and a new epoch.
func nextRole(word, state uint64) uint64 { return (word | roleMask) + 1 | state }

// A mark is where a stand-in goes on for a reader whose handler runs: behind the
// handler's frame, or where a stretch of one-way messages begins.
type mark struct {
	r                   int
	noteBytes, noteMsgs uint64 // without the handler's
	gotBytes, gotMsgs   uint64 // with the handler's frame, without the stretch
	stretch             stretch
}

// letGo frees the role after the ending of a lone call, so that the next lone
// caller can read its own reply, or after frames of streams, so that the next
// Recv can read its own messages. It reports whether it did.
func (rd *reader) letGo() bool {
	c := rd.c
	switch {
	case !rd.delivered && !rd.streamed, rd.served, c.crowd.Load(), c.raw == nil, c.ended.Load():
		return false
	case rd.streamed && rd.stay > 0:
		rd.stay--
		return false
	}
	return rd.free()
}

// free frees the role, with what has arrived of a frame, unless somebody expects
// something, and reports whether it did.
func (rd *reader) free() bool {
	if rd.c.expecting.Load() > 0 {
		return false
	}
	if rd.w == rd.r {
		rd.releaseBuffer()
	}
	return rd.c.freeRole()
}

// freeRole frees the role unless somebody expects something, and reports
// whether it did; otherwise the role is held in state roleReading.
func (c *Conn) freeRole() bool {
	word := nextRole(c.role.Load(), roleFree)
	c.role.Store(word)
	c.watch()
	// Who starts to expect something counts itself, then looks at the role.
	return c.expecting.Load() == 0 || !c.role.CompareAndSwap(word, nextRole(word, roleReading))
}

// borrow has the only goroutine that waits for something to be received read it
// itself: it saves two changes of goroutine. over says that it is there, and that
// the goroutine no longer counts in expecting. borrow reports whether that was so;
// when not, a reader's goroutine reads and the borrower waits like any other. d is
// where a message of a stream may be read to, or nil.
func (c *Conn) borrow(over func() bool, d *directInput) bool {
	word := c.role.Load()
	if c.raw == nil || word&roleMask != roleFree || !c.role.CompareAndSwap(word, nextRole(word, roleBorrowed)) {
		return false
	}
	c.watch()
	rd := c.reader
	for {
		v := needMore
		if rd.w > rd.r {
			if v = rd.process(true); v == readOver { // nobody will read again; the monitor need not look for somebody
				c.role.Store(nextRole(c.role.Load(), roleReading))
				return false
			}
			rd.settle()
		}
		if v == needMore {
			if over() {
				if rd.streamed && rd.stay > 0 || !rd.free() {
					c.role.Store(nextRole(c.role.Load(), roleReading))
					c.workers.run(rd)
				}
				return true
			}
			if err := rd.fillDirect(d); err == nil {
				continue
			}
		}
		// A handler must run, it takes long, or the connection ends (as the
		// next read will find too).
		c.role.Store(nextRole(c.role.Load(), roleReading))
		c.workers.run(rd)
		return false
	}
}

// ensureReader makes sure that somebody reads, for a goroutine that is about to
// wait for something to be received and has counted itself in expecting. When
// the role's holder is in a handler, that may be this very goroutine.
func (c *Conn) ensureReader() {
	word := c.role.Load()
	switch word & roleMask {
	case roleFree:
		if c.role.CompareAndSwap(word, nextRole(word, roleReading)) {
			c.workers.run(c.reader)
		}
	case roleHandler:
		runtime.Gosched() // another goroutine's handler may well have returned by then
		if c.role.Load() == word {
			c.takeOver(word)
		}
	}
}

// takeOver gives the role of a reader that is in a handler to a stand-in, which
// reads on behind the frame that the handler works on.
func (c *Conn) takeOver(word uint64) {
	c.taking.Lock()
	defer c.taking.Unlock()
	if !c.role.CompareAndSwap(word, nextRole(word, roleReading)) {
		return
	}
	old, rd := c.reader, newReader(c)
	m := old.mark
	if m.stretch.most > 0 {
		old.dropRest = c.ended.Load() // as all that follows is discarded then
		end, bytes, msgs := old.walk(m.stretch.most)
		m.r, m.gotBytes, m.gotMsgs = end, m.gotBytes+bytes, m.gotMsgs+msgs
	}
	if old.w > m.r {
		rd.ensureBuffer()
		rd.w = copy(rd.buf[:], old.buf[m.r:old.w])
	}
	rd.endings, rd.made, rd.stay = old.endings, old.made, old.stay
	rd.freed, old.freed = old.freed, nil
	rd.noteBytes, rd.noteMsgs = m.noteBytes, m.noteMsgs
	c.oneWay.gotBytes, c.oneWay.gotMsgs = m.gotBytes, m.gotMsgs
	old.putReplies() // the handler writes behind them
	c.unsettled.Store(false)
	if old.in != nil {
		c.keep(old.in)
	} else {
		c.oneWay.busy.Store(true) // its goroutine handles the messages that follow
	}
	c.caught(old.current)
	c.reader = rd
	c.workers.run(rd)
}
