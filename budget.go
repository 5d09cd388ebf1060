package plugwire

import (
	"math"
	"sync/atomic"
)

// A budget bounds what the connections of a Server hold of large messages
// together: Limits.MaxServerBytes. It counts bytes that have arrived,
// not announced totals: those are claims, with which a few connections that send
// nothing more would keep everybody else out. Messages of at most uncounted bytes
// in one frame are left out, so that small calls share nothing between
// connections: each costs no more than the goroutine that handles it, and
// MaxCalls and OneWayWindow bound how many there are. So are those of streams that
// fit their windows.
type budget struct {
	used atomic.Int64
	most int64
}

// uncounted is the payload of a request of one frame that no budget counts.
const uncounted = 4 << 10

// take counts n bytes; false means that there is no room, and that they are not
// counted. A nil budget, of a connection that is no Server's, has room for all.
func (b *budget) take(n int) bool {
	if b == nil || b.used.Add(int64(n)) <= b.most {
		return true
	}
	b.give(n)
	return false
}

// give takes n bytes back.
func (b *budget) give(n int) {
	if b != nil {
		b.used.Add(int64(-n))
	}
}

// fits reports whether there is room for n bytes now.
func (b *budget) fits(n int) bool { return b == nil || b.used.Load()+int64(n) <= b.most }

// Messages of several frames are counted as they arrive. Those that are not
// complete when their connection ends have nobody who would give their bytes
// back, so the connection keeps the sum of them.

// arrives counts n bytes of an incomplete message; false as for take.
func (c *Conn) arrives(n int) bool {
	b := c.cfg.budget
	if !b.take(n) {
		return false
	}
	if b != nil && c.arriving.Add(int64(n)) < 0 { // nothingArrives has been called
		b.give(n)
	}
	return true
}

// arrived is called when n bytes of an incomplete message are complete, or
// dropped. It returns how many must still be given back: of a connection that
// has ended, none.
func (c *Conn) arrived(n int) int {
	if c.cfg.budget == nil || c.arriving.Add(int64(-n)) < 0 {
		return 0
	}
	return n
}

// nothingArrives gives back what the connection has counted of incomplete
// messages, for it has ended.
func (c *Conn) nothingArrives() {
	if n := c.arriving.Swap(math.MinInt64 / 2); n > 0 {
		c.cfg.budget.give(int(n))
	}
}

var errServerFull = &Error{Code: ResourceExhausted, Message: "the server holds as many bytes of requests as it may (Limits.MaxServerBytes)", notRun: true}
