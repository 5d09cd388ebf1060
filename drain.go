package plugwire

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/plugwire/plugwire/internal/batch"
)

// lifecycle is how a connection comes to its end: open, draining on either
// side, ended, over. Guarded by out's lock, but for the last two fields.
type lifecycle struct {
	refuses    bool        // nothing may be opened on this side: theyDrain, drained or ended
	draining   bool        // this side has asked the other to open nothing more
	acked      atomic.Bool // and the other has agreed; stored under the lock
	ackedAt    uint64      // having sent so many one-way messages
	drained    bool        // and none of this side's handlers runs or will
	theyDrain  bool        // the other side has asked this one
	closing    bool        // Close has been called
	ended      bool        // pending calls have been ended
	unanswered bool        // and endings of the other side's have come too late to be sent
	over       bool        // everything has
	said       bool        // a GOAWAY has been sent behind which nothing comes
	goAway     [goAwayDone + 1]bool
	lastWord   []byte     // GOAWAY failed
	changed    batch.Gate // those who wait for a step of the drain
	retiring   bool       // retire waits for this side's calls
	onRefuse   func()     // nil, or called under out's lock when refuses becomes true

	// Of the holder of the reading role.
	theyAreDone bool
	theirReason error
}

// refuse has nothing more opened on this side. Called under out's lock.
func (l *lifecycle) refuse() {
	if !l.refuses && l.onRefuse != nil {
		l.onRefuse()
	}
	l.refuses = true
}

// whenRefusing has f called, once and under out's lock, when nothing more may be
// opened on this side: perhaps at once.
func (c *Conn) whenRefusing(f func()) {
	c.out.Lock()
	defer c.out.Unlock()
	if c.life.refuses {
		f()
	} else {
		c.life.onRefuse = f
	}
}

// send has a GOAWAY sent with the next batch.
func (l *lifecycle) send(code int) { l.goAway[code] = true }

func (l *lifecycle) appendGoAway(b []byte) []byte {
	for code := range l.goAway {
		if l.goAway[code] {
			l.goAway[code] = false
			l.said = l.said || code == goAwayDone
			b = appendFrameHeader(b, FrameHeader{Type: FrameGoAway, Code: uint16(code)})
		}
	}
	l.said = l.said || len(l.lastWord) > 0
	b = append(b, l.lastWord...)
	l.lastWord = nil
	return b
}

// mayOpen returns nil when this side may open calls and send one-way messages,
// else why not. Called under out's lock.
func (l *lifecycle) mayOpen(c *Conn) error {
	switch {
	case l.ended:
		return c.Err()
	case l.theyDrain:
		return &Error{Code: Unavailable, Op: "call", Message: "the other side is shutting down and takes nothing new", notRun: true}
	case l.drained:
		return &Error{Code: Unavailable, Op: "call", Message: "this side is shutting down", notRun: true}
	}
	return nil
}

// drainStep takes notice of a step towards the end of a drain. Once no handler
// is left that may call back, this side opens nothing more either: others that
// go on calling would keep it from ever being idle. Called under out's lock.
func (c *Conn) drainStep() {
	l := &c.life
	if !l.draining {
		if l.retiring {
			c.out.OpenAll(&l.changed)
		}
		return
	}
	if !l.drained && l.acked.Load() && c.servingCount.Load() == 0 && c.oneWay.handledMsgs == l.ackedAt {
		l.drained, c.notes.left = true, 0
		l.refuse()
		c.openGates()
	}
	c.out.OpenAll(&l.changed)
}

// idle reports that nothing is left to be done on either side. Called under out's lock.
func (c *Conn) idle() bool {
	return int(c.used) == len(c.free) && c.servingCount.Load() == 0 && c.oneWay.handledMsgs == c.life.ackedAt
}

// Shutdown ends the connection in order: the other side is asked to open nothing
// more, calls and one-way messages that were accepted on either side are
// finished, and then the connection is closed: a handler that lasts as long as its
// connection, on either side, keeps Shutdown waiting. Handlers may call back until the
// last of them has returned; from then on calls of this side are refused too.
// A handler must not wait for Shutdown itself. When ctx ends first, Shutdown
// closes it at once, as Close does, and returns the context's error.
func (c *Conn) Shutdown(ctx context.Context) error {
	c.out.Lock()
	if c.life.ended {
		c.out.Unlock()
		return nil
	}
	if !c.life.draining {
		c.life.draining = true
		c.life.send(goAwayDrain)
		c.out.Signal()
	}
	err := c.waitFor(ctx, &c.life.changed, func() bool { return c.life.ended || c.life.acked.Load() && c.idle() })
	c.out.Unlock()
	if err == nil {
		err = c.Flush(ctx) // what the other side has accepted
	}
	if ctx.Err() == nil {
		err = nil // the connection broke off instead: it has ended
	}
	if closing := c.Close(); err == nil {
		err = closing
	}
	return err
}

// retire is Shutdown by a Pool that needs the connection no more. Before it asks the
// other side to open nothing, it lets this side's calls end, for whose sake the
// other side may still call back, and has the Pool's messages handled: of one that
// was accepted later, the connection's end would not say whether it has been.
func (c *Conn) retire(ctx context.Context) error {
	c.out.Lock()
	c.life.retiring = true
	c.waitFor(ctx, &c.life.changed, func() bool { return c.life.ended || c.inUse() == 0 })
	c.out.Unlock()
	c.moveOn(ctx)
	return c.Shutdown(ctx)
}

// inUse is how many calls and streams of this side have a slot. Called under out's lock.
func (c *Conn) inUse() int { return int(c.used) - len(c.free) }

// goAway takes in the other side's GOAWAY.
func (c *Conn) goAway(h *FrameHeader, b []byte) error {
	if h.Code != goAwayFailed && len(b) > 0 {
		return fmt.Errorf("plugwire: GOAWAY %d with a payload", h.Code)
	}
	c.out.Lock()
	defer c.out.Unlock()
	switch h.Code {
	case goAwayDrain:
		if !c.life.theyDrain {
			c.life.theyDrain, c.notes.left = true, 0
			c.life.refuse()
			c.life.send(goAwayAck)
			c.out.Signal()
			c.openGates()
		}
	case goAwayAck:
		switch {
		case !c.life.draining:
			return errors.New("plugwire: GOAWAY ack without drain")
		case c.life.acked.Load():
			return errors.New("plugwire: GOAWAY ack twice")
		}
		c.life.ackedAt = c.oneWay.gotMsgs
		c.life.acked.Store(true)
		c.drainStep()
	case goAwayDone:
		c.life.theyAreDone = true
		c.workers.run((*farewell)(c))
	case goAwayFailed:
		if len(b) < 2 {
			return errors.New("plugwire: GOAWAY failed without a status")
		}
		c.life.theyAreDone = true
		c.life.theirReason = parseGoAwayFailed(b)
		return c.life.theirReason
	default:
		return fmt.Errorf("plugwire: GOAWAY with unknown code %d", h.Code)
	}
	return nil
}
