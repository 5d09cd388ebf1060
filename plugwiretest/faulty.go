package plugwiretest

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// Faults are what is wrong with a connection. Their zero values mean nothing is;
// all that are set act together.
type Faults struct {
	Latency   time.Duration // what Read gives came so long ago; it reads no further meanwhile
	Bandwidth int           // bytes per second, in each direction
	MaxRead   int           // bytes that a Read gives at most
	MaxWrite  int           // bytes that go to the connection below at once

	// ShortWrite has Write stop after the first MaxWrite bytes, or half of what it
	// was given, and return n < len(b) with a nil error: against the rules of
	// io.Writer, which not everyone keeps.
	ShortWrite bool

	SlowClose time.Duration // how long Close takes, before the other side hears of it

	// Limit is how many bytes pass in both directions together before AtLimit is
	// called, once, with the connection: (*FaultyConn).Reset, which is what happens
	// when it is nil, (*FaultyConn).Stall, or anything that a test wants done at
	// that moment. Nothing passes until it has returned.
	Limit   int
	AtLimit func(*FaultyConn)
}

// A FaultyConn is a net.Conn with Faults. Its deadlines hold and Close ends what
// waits, whatever is wrong with it.
type FaultyConn struct {
	nc      net.Conn
	faults  Faults // but for AtLimit
	in, out direction

	// mu guards what follows and both directions' deadline and due. Under it
	// nothing waits.
	mu      sync.Mutex
	changed chan struct{} // closed and replaced when what those who wait look at has changed
	err     error         // after Close or Reset
	closed  bool
	stalled bool
	limited bool // the limit is still to be reached
	left    int  // bytes until then
	atLimit func(*FaultyConn)
	acting  bool // atLimit runs
}

// A direction is what is read, or what is written.
type direction struct {
	busy     sync.Mutex // held by who reads or writes
	most     int        // bytes at once
	deadline time.Time
	due      time.Time // nothing passes before

	// What was read from the connection below and not yet given; under busy.
	buf, held []byte
}

var _ net.Conn = (*FaultyConn)(nil)

// Faulty returns nc, which belongs to it from then on, with faults. To see them in
// both directions in full, put one around each end. It has no SyscallConn, past
// which they would not be seen, so that the kernel is not asked who is at the
// other side: the address of a Unix socket is of the network "faulty", to which
// plugwire lets everyone.
func Faulty(nc net.Conn, f Faults) *FaultyConn {
	c := &FaultyConn{nc: nc, faults: f, changed: make(chan struct{}), limited: f.Limit > 0, left: f.Limit, atLimit: f.AtLimit}
	c.in.most, c.out.most = f.MaxRead, f.MaxWrite
	for _, d := range []*direction{&c.in, &c.out} {
		if d.most <= 0 {
			d.most = 64 << 10
		}
		if f.Bandwidth > 0 { // let it trickle
			d.most = max(1, min(d.most, f.Bandwidth/100))
		}
	}
	return c
}

// Limit replaces Faults.Limit, counted from now on, and AtLimit; 0 is no limit.
func (c *FaultyConn) Limit(n int, atLimit func(*FaultyConn)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limited, c.left, c.atLimit = n > 0, n, atLimit
	c.wake()
}

// Reset ends the connection as by a crash of the network: what is under way is
// lost, and reads and writes fail with syscall.ECONNRESET (Plan 9: in its words), at the other end too
// where the connection below is TCP. There it is otherwise closed.
func (c *FaultyConn) Reset() {
	if c.end(errReset) {
		if tcp, ok := c.nc.(*net.TCPConn); ok {
			tcp.SetLinger(0)
		}
		c.nc.Close()
	}
}

// Stall has nothing pass any more, in either direction, without anyone being
// told: reads and writes wait until Resume, Close or their deadline. Not even the
// end of the connection gets through.
func (c *FaultyConn) Stall() { c.setStalled(true) }

// Resume ends what Stall has begun.
func (c *FaultyConn) Resume() { c.setStalled(false) }

func (c *FaultyConn) setStalled(stalled bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stalled = stalled
	c.wake()
}

// wake has those who wait look again. Called with mu held.
func (c *FaultyConn) wake() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// end has everything fail with err from now on, and reports whether it was the
// first to.
func (c *FaultyConn) end(err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return false
	}
	c.err = err
	c.wake()
	return true
}

// Close implements net.Conn.
func (c *FaultyConn) Close() error {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	c.mu.Unlock()
	if closed {
		return net.ErrClosed
	}
	c.end(net.ErrClosed)
	if c.faults.SlowClose > 0 {
		c.nc.SetDeadline(time.Unix(1, 0)) // who reads or writes does not wait so long
		time.Sleep(c.faults.SlowClose)
	}
	return c.nc.Close()
}

// CloseWrite ends what is written, if the connection below can do that.
func (c *FaultyConn) CloseWrite() error {
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	c.out.busy.Lock()
	defer c.out.busy.Unlock()
	if _, err := c.pass(&c.out, 0); err != nil {
		return err
	}
	return half.CloseWrite()
}

// Read implements net.Conn.
func (c *FaultyConn) Read(b []byte) (int, error) {
	d := &c.in
	d.busy.Lock()
	defer d.busy.Unlock()
	if len(d.held) == 0 {
		if d.buf == nil {
			d.buf = make([]byte, 64<<10)
		}
		n, err := c.nc.Read(d.buf[:max(1, min(len(b), len(d.buf)))])
		if n == 0 {
			if _, ended := c.pass(d, 0); ended != nil {
				return 0, c.opError("read", ended)
			}
			return 0, err
		}
		d.held = d.buf[:n]
		if c.faults.Latency > 0 {
			c.mu.Lock()
			d.due = later(d.due, time.Now().Add(c.faults.Latency))
			c.mu.Unlock()
		}
	}
	n, err := c.pass(d, min(len(b), len(d.held)))
	if err != nil {
		return 0, c.opError("read", err)
	}
	copy(b, d.held[:n])
	d.held = d.held[n:]
	c.passed(d, n)
	return n, nil
}

// Write implements net.Conn.
func (c *FaultyConn) Write(b []byte) (sent int, err error) {
	d := &c.out
	d.busy.Lock()
	defer d.busy.Unlock()
	most := len(b)
	if c.faults.ShortWrite {
		if most = (len(b) + 1) / 2; c.faults.MaxWrite > 0 {
			most = min(len(b), c.faults.MaxWrite)
		}
	}
	for sent < most {
		n, err := c.pass(d, most-sent)
		if err != nil {
			return sent, c.opError("write", err)
		}
		n, err = c.nc.Write(b[sent : sent+n])
		sent += n
		if err != nil {
			if _, ended := c.pass(d, 0); ended != nil {
				err = c.opError("write", ended)
			}
			return sent, err
		}
		c.passed(d, n)
	}
	return sent, nil
}

// pass waits until something may pass in a direction, and returns how many of n
// bytes; those count towards the limit from then on.
func (c *FaultyConn) pass(d *direction, n int) (int, error) {
	for {
		c.mu.Lock()
		err, changed := c.err, c.changed
		now, wake := time.Now(), d.deadline
		switch {
		case err != nil:
		case !d.deadline.IsZero() && !now.Before(d.deadline):
			err = os.ErrDeadlineExceeded
		case c.stalled, c.acting, c.limited && c.left == 0:
		case now.Before(d.due):
			if wake.IsZero() || d.due.Before(wake) {
				wake = d.due
			}
		default:
			if n = min(n, d.most); c.limited {
				n = min(n, c.left)
				c.left -= n
			}
			c.mu.Unlock()
			return n, nil
		}
		c.mu.Unlock()
		if err != nil {
			return 0, err
		}
		var alarm <-chan time.Time
		if !wake.IsZero() {
			timer := time.NewTimer(wake.Sub(now))
			defer timer.Stop()
			alarm = timer.C
		}
		select {
		case <-alarm:
		case <-changed:
		}
	}
}

// passed accounts for n bytes that have passed.
func (c *FaultyConn) passed(d *direction, n int) {
	c.mu.Lock()
	if c.faults.Bandwidth > 0 {
		d.due = later(d.due, time.Now()).Add(time.Duration(n) * time.Second / time.Duration(c.faults.Bandwidth))
	}
	reached := c.limited && c.left == 0
	act := c.atLimit
	if reached {
		c.limited, c.acting = false, true
	}
	c.mu.Unlock()
	if !reached {
		return
	}
	if act == nil {
		act = (*FaultyConn).Reset
	}
	act(c)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acting = false
	c.wake()
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (c *FaultyConn) opError(op string, err error) error {
	a := c.RemoteAddr()
	return &net.OpError{Op: op, Net: a.Network(), Source: c.LocalAddr(), Addr: a, Err: err}
}

// SetDeadline implements net.Conn.
func (c *FaultyConn) SetDeadline(t time.Time) error {
	return c.setDeadline(t, c.nc.SetDeadline, &c.in, &c.out)
}

// SetReadDeadline implements net.Conn.
func (c *FaultyConn) SetReadDeadline(t time.Time) error {
	return c.setDeadline(t, c.nc.SetReadDeadline, &c.in)
}

// SetWriteDeadline implements net.Conn.
func (c *FaultyConn) SetWriteDeadline(t time.Time) error {
	return c.setDeadline(t, c.nc.SetWriteDeadline, &c.out)
}

func (c *FaultyConn) setDeadline(t time.Time, below func(time.Time) error, dirs ...*direction) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.opError("set", c.err)
	}
	for _, d := range dirs {
		d.deadline = t
	}
	c.wake()
	return below(t)
}

// LocalAddr implements net.Conn.
func (c *FaultyConn) LocalAddr() net.Addr { return addrOf(c.nc.LocalAddr()) }

// RemoteAddr implements net.Conn.
func (c *FaultyConn) RemoteAddr() net.Addr { return addrOf(c.nc.RemoteAddr()) }

func addrOf(a net.Addr) net.Addr {
	if a.Network() == "unix" {
		return faultyAddr{a}
	}
	return a
}

type faultyAddr struct{ net.Addr }

func (faultyAddr) Network() string { return "faulty" }
