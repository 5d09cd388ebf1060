package plugwire

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// NetConn returns the stream as a net.Conn, over which any byte protocol can be
// tunnelled: what is written goes out in messages of up to 32 KiB, and reading
// takes no notice of where messages begin. The connection also has CloseWrite.
// Close sends what was written and says that no more follows, as a TCP connection
// does; what the other side sends after that, or has sent and nobody read, resets
// the stream.
//
// On the acceptor's side the handler must not return before the connection is
// done with. Close ends the stream's Context, so a handler that has handed the
// connection on waits for that. On the opener's side the stream ends with the
// context that it was opened with, and who dials for others often gets one that
// ends with the dialling: take context.WithoutCancel of it.
//
// Call NetConn once, and then no longer Send, Recv or CloseSend.
func (s *Stream) NetConn() net.Conn {
	c := &streamConn{s: s, readBy: makeDeadline(), writeBy: makeDeadline()}
	c.read.Store(s.in.received())
	s.conn.out.Lock()
	s.writeBy = &c.writeBy
	s.conn.out.Unlock()
	return c
}

// streamChunk is the largest message that a streamConn sends.
const streamChunk = 32 << 10

type streamConn struct {
	s       *Stream
	readBy  deadline
	writeBy deadline // passes at the stream's end too
	closed  atomic.Bool
	read    atomic.Uint64 // cost of the messages that were read to their ends

	readMu sync.Mutex
	begun  bool   // the opener's stream has been announced
	buf    []byte // a message that Read had no room for
	rest   []byte // what of it is still to be read
}

func (c *streamConn) Read(b []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	for {
		stop := c.readBy.wait()
		switch {
		case c.closed.Load():
			return 0, c.opError("read", net.ErrClosed)
		case isClosed(stop):
			return 0, c.opError("read", os.ErrDeadlineExceeded)
		case len(c.rest) > 0 || len(b) == 0:
			n := copy(b, c.rest)
			if c.rest = c.rest[n:]; len(c.rest) == 0 {
				c.read.Store(c.s.in.received())
			}
			return n, nil
		case !c.begun && c.s.back == 0:
			c.begun = c.announce(stop) == nil
			if isClosed(stop) {
				continue // to say why
			}
		}
		msg, err := c.s.recv(b[:0:len(b)], stop)
		switch {
		case err == errRecvStopped:
			continue // to say why
		case err == io.EOF:
			return 0, io.EOF
		case err != nil && c.closed.Load():
			return 0, c.opError("read", net.ErrClosed)
		case err != nil:
			return 0, c.opError("read", err)
		case len(msg) > len(b):
			c.buf = append(c.buf[:0], msg...)
			c.rest = c.buf
		default:
			c.read.Store(c.s.in.received())
			if len(msg) == 0 {
				continue
			}
			if &msg[0] != &b[0] {
				copy(b, msg)
			}
			return len(msg), nil
		}
	}
}

// announce opens the stream, unless stop is closed before or the stream ends.
func (c *streamConn) announce(stop <-chan struct{}) error {
	ctx, cancel := context.WithCancel(&deadlineContext{c.s.ctx, stop})
	defer cancel()
	defer context.AfterFunc(&deadlineContext{c.s.ctx, c.s.Done()}, cancel)()
	return c.s.announce(ctx, false)
}

func (c *streamConn) Write(b []byte) (int, error) {
	chunk := min(streamChunk, c.s.conn.limits.frame, c.s.conn.limits.message)
	for n := 0; ; {
		ctx := &deadlineContext{c.s.ctx, c.writeBy.wait()}
		switch {
		case c.closed.Load():
			return n, c.opError("write", net.ErrClosed)
		case isClosed(ctx.done) && c.s.Err() == nil: // else send says how the stream has ended
			return n, c.opError("write", os.ErrDeadlineExceeded)
		case n == len(b):
			return n, nil
		}
		part := b[n:min(n+chunk, len(b))]
		if err := c.s.send(ctx, part); err != nil {
			switch {
			case c.closed.Load():
				err = net.ErrClosed
			case isClosed(ctx.done) && c.s.Err() == nil:
				err = os.ErrDeadlineExceeded
			case err == io.EOF:
				err = io.ErrClosedPipe // the other side has ended the stream
			}
			return n, c.opError("write", err)
		}
		n += len(part)
	}
}

// CloseWrite says that nothing more will be written; the other side reads
// io.EOF behind what was.
func (c *streamConn) CloseWrite() error {
	if c.closed.Load() {
		return c.opError("close", net.ErrClosed)
	}
	if err := c.s.CloseSend(); err != nil {
		return c.opError("close", err)
	}
	return nil
}

func (c *streamConn) Close() error {
	if c.closed.Swap(true) {
		return c.opError("close", net.ErrClosed)
	}
	c.readBy.set(time.Unix(1, 0))
	c.writeBy.set(time.Unix(1, 0))
	if c.s.back != 0 {
		defer c.s.ctx.(*requestContext).cancel(context.Canceled) // the handler may return
	}
	ctx, cancel := context.WithTimeout(&c.s.life, c.s.conn.cfg.CloseTimeout)
	defer cancel()
	if c.s.closeSend(ctx) != nil {
		return c.s.Close() // the other side takes nothing, or it is over
	}
	c.s.hangUp()
	if c.s.in.got.Load() > c.read.Load() {
		return c.s.Close() // what was written still arrives: the other side has heard of the end before
	}
	return nil
}

func (c *streamConn) LocalAddr() net.Addr  { return c.s.conn.LocalAddr() }
func (c *streamConn) RemoteAddr() net.Addr { return c.s.conn.RemoteAddr() }

func (c *streamConn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

func (c *streamConn) SetReadDeadline(t time.Time) error  { return c.setDeadline(&c.readBy, t) }
func (c *streamConn) SetWriteDeadline(t time.Time) error { return c.setDeadline(&c.writeBy, t) }

func (c *streamConn) setDeadline(d *deadline, t time.Time) error {
	if c.closed.Load() {
		return c.opError("set", net.ErrClosed)
	}
	d.set(t)
	if c.closed.Load() { // meanwhile
		d.set(time.Unix(1, 0))
	}
	return nil
}

func (c *streamConn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "plugwire", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// A deadline is a channel that is closed when a time has come, which may move.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	done  chan struct{}
}

func makeDeadline() deadline { return deadline{done: make(chan struct{})} }

// wait returns the channel; take it anew for each wait.
func (d *deadline) wait() chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.done
}

// set moves the deadline; the zero time is never.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.done // the timer has fired, and is about to close it
	}
	d.timer = nil
	passed := isClosed(d.done)
	left := time.Until(t)
	switch {
	case t.IsZero() || left > 0:
		if passed {
			d.done = make(chan struct{})
		}
		if !t.IsZero() {
			done := d.done
			d.timer = time.AfterFunc(left, func() { close(done) })
		}
	case !passed:
		close(d.done)
	}
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// deadlineContext is a context that ends at a deadline too.
type deadlineContext struct {
	context.Context
	done <-chan struct{}
}

func (x *deadlineContext) Done() <-chan struct{} { return x.done }

func (x *deadlineContext) Err() error {
	if isClosed(x.done) {
		return os.ErrDeadlineExceeded
	}
	return x.Context.Err()
}
