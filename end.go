package plugwire

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"time"

	"github.com/plugwire/plugwire/internal/batch"
)

// How a connection ends, from this side, from the other, or by a fault.

// fail ends the connection because of err: nothing more is sent or handled,
// every pending call ends, and every handler's context.
func (c *Conn) fail(err error) {
	c.endCalls(err, false)
	c.out.Fail(err)
	c.nc.Close()
	c.finish()
}

// endCalls ends what waits on this side: the first error given is the
// connection's, and later ones are dropped. flushing says that what was accepted
// is still sent, so that a request in the buffer may yet run.
func (c *Conn) endCalls(err error, flushing bool) {
	c.endOnce.Do(func() {
		c.errMu.Lock()
		c.err = err
		c.errMu.Unlock()
		c.ended.Store(true)
		c.out.Lock()
		c.life.ended, c.notes.left = true, 0
		c.life.refuse()
		if !flushing {
			c.out.Stop(err) // what is said not to have been sent must not be sent now
		}
		c.calls.all(func(id uint32, e *outCall) {
			if s := e.stream.Load(); s != nil {
				notRun := !s.opened || !flushing && e.end > c.out.Gone() || err == error(theyClosedError)
				s.endLocked(streamError(err, s.info.Method, notRun), false, true)
				return
			}
			if !e.claim() {
				return
			}
			// Who says done has ended every call that it received.
			notRun := !e.whole || !flushing && e.end > c.out.Gone() || err == error(theyClosedError)
			c.countEnded(e, Unavailable)
			e.finish(&Error{Code: Unavailable, Op: "call", Addr: e.call.Method, Err: err, notRun: notRun})
		})
		c.serving.all(func(_ uint32, in *inCall) {
			if in.state.Load() == inStream {
				s := in.stream.Load()
				s.endLocked(streamError(err, s.info.Method, false), false, true)
			}
		})
		c.openGates()
		for _, ch := range c.pings {
			close(ch)
		}
		c.pings = nil
		c.out.Unlock()
		c.serving.all(func(_ uint32, in *inCall) {
			if ctx := in.ctx.Load(); ctx != nil {
				ctx.cancel(context.Canceled)
			}
		})
		if ctx := c.oneWay.ctx.Load(); ctx != nil {
			ctx.cancel(context.Canceled)
		}
	})
}

// openGates has everyone who waits on this side look at the connection's state
// again. Called under out's lock.
func (c *Conn) openGates() {
	for _, g := range []*batch.Gate{&c.admit, &c.notes.window, &c.notes.handled, &c.life.changed} {
		c.out.OpenAll(g)
	}
}

// finish marks everything as over.
func (c *Conn) finish() {
	c.out.Lock()
	over, after := c.life.over, c.after
	c.life.over = true
	if c.alive != nil {
		c.alive.Stop()
	}
	c.out.Unlock()
	if over {
		return
	}
	c.mux.remove(c)
	c.cfg.metrics.leave(c)
	c.nothingArrives()
	c.workers.close()
	c.peer.process.Close()
	close(c.done)
	if after != nil {
		after()
	}
}

// whenOver has f called when the connection is over, at once if it is.
func (c *Conn) whenOver(f func()) {
	c.out.Lock()
	over := c.life.over
	c.after = f
	c.out.Unlock()
	if over {
		f()
	}
}

// Close ends the connection: what was accepted is sent, every pending call ends
// with an error, the contexts of handlers end, and the other side is told. It
// does not wait for handlers. It takes at most Config.CloseTimeout, and a second
// Close waits for the first and returns nil.
func (c *Conn) Close() error { return c.closeFor(closedError) }

// closeFor closes for a reason: this side's wish, or the other's.
func (c *Conn) closeFor(reason error) error {
	c.out.Lock()
	closing := c.life.closing
	c.life.closing = true
	c.out.Unlock()
	if closing || c.ended.Load() {
		<-c.done
		return nil
	}
	deadline := time.Now().Add(c.cfg.CloseTimeout)
	c.endCalls(reason, true)
	if word := c.role.Load(); word&roleMask == roleHandler {
		c.takeOver(word) // so that the call is counted
	}
	for range 1000 { // the reader is about to pass the last endings on, or has
		if !c.unsettled.Load() {
			break
		}
		runtime.Gosched()
	}
	c.out.Lock()
	if c.servingCount.Load() == 0 && !c.unsettled.Load() && !c.life.unanswered {
		c.life.send(goAwayDone)
	} else { // done would say that calls without an ending did not run
		c.life.lastWord = appendGoAwayFailed(nil, Unavailable, "closed while calls were running")
	}
	c.out.Signal()
	c.out.Unlock()
	err := c.out.Drain(time.Until(deadline))
	if err == nil {
		c.linger(deadline)
	}
	c.fail(reason)
	if err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return &Error{Code: DeadlineExceeded, Op: "close", Message: "the other side did not take what was sent", Err: err}
	}
	return nil
}

var (
	closedError     = &Error{Code: Unavailable, Op: "close", Err: net.ErrClosed}
	theyClosedError = &Error{Code: Unavailable, Op: "close", Message: "the other side closed the connection", Err: io.EOF}
)

// farewell is the work on GOAWAY done: this side ends likewise.
type farewell Conn

func (f *farewell) run() { (*Conn)(f).closeFor(theyClosedError) }

// linger closes the sending half and waits for the other side to end: closing
// with unread bytes would destroy what was just sent.
func (c *Conn) linger(deadline time.Time) {
	if half, ok := c.nc.(interface{ CloseWrite() error }); ok && half.CloseWrite() != nil {
		return
	}
	c.expecting.Add(1)
	c.ensureReader()
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-c.eof:
	case <-timer.C:
	}
	c.expecting.Add(-1)
}

// readFailed ends the connection after a read failed. The role stays taken, so
// that nobody reads again.
func (c *Conn) readFailed(err error) {
	close(c.eof)
	if c.ended.Load() {
		return // Close is under way and does the rest
	}
	switch {
	case err == io.EOF:
		err = brokeOff(io.ErrUnexpectedEOF)
	default:
		err = brokeOff(err)
	}
	if c.life.theirReason != nil {
		err = c.life.theirReason
	}
	c.fail(err)
}

// writeFailed ends the connection after a write failed, when what had arrived
// by then is taken in: the other side may have answered, or said why it closes.
func (c *Conn) writeFailed(err error) {
	err = brokeOff(err)
	if c.ended.Load() || CodeOf(err) == DeadlineExceeded {
		c.fail(err)
		return
	}
	c.workers.run(&lastReads{c, err})
}

// lastReads waits for the reader to find the end, and otherwise ends the
// connection itself.
type lastReads struct {
	c   *Conn
	err error
}

func (l *lastReads) run() {
	c := l.c
	c.expecting.Add(1)
	c.ensureReader()
	timer := time.NewTimer(lastWordsTimeout)
	defer timer.Stop()
	select {
	case <-c.done:
	case <-timer.C:
	}
	c.expecting.Add(-1)
	c.fail(l.err)
}

// brokeOff makes an *Error of what a read or write failed with.
func brokeOff(err error) error {
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	code := Unavailable
	if errors.Is(err, os.ErrDeadlineExceeded) {
		code = DeadlineExceeded // nothing was taken for WriteTimeout
	}
	return &Error{Code: code, Op: "close", Message: "the connection broke off", Err: err}
}

// violated ends the connection because the other side broke the protocol, or sent
// what the Server has no room for, and tells it why if it listens.
func (c *Conn) violated(err error) {
	if c.ended.Load() {
		close(c.eof)
		return // Close is under way and does the rest
	}
	reason := &Error{Code: Internal, Op: "close", Message: "the other side broke the protocol", Err: err}
	if err == error(errServerFull) {
		reason = &Error{Code: ResourceExhausted, Op: "close", Message: errServerFull.Message}
	}
	c.endCalls(reason, true)
	c.out.Lock()
	c.life.lastWord = appendGoAwayFailed(nil, reason.Code, err.Error())
	c.out.Signal()
	c.out.Unlock()
	c.workers.run((*lastWords)(c))
}

// lastWords sends what is pending, with the reason for closing at its end, and
// ends the connection.
type lastWords Conn

// lastWordsTimeout is how long a peer that broke the protocol may take to hear of it.
const lastWordsTimeout = time.Second

func (l *lastWords) run() {
	c := (*Conn)(l)
	c.out.Drain(min(lastWordsTimeout, c.cfg.CloseTimeout))
	c.fail(c.Err())
	close(c.eof)
}
