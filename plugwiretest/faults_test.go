package plugwiretest_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/plugwire/plugwire"
	"github.com/plugwire/plugwire/plugwiretest"
)

// placements are the places in a connection where a fault can be: around the
// net.Conn that an end was given, or between two ends that have real sockets.
var placements = map[string]func(t *testing.T, f faults) (near, far net.Conn, faulty *plugwiretest.FaultyConn){
	"around": func(t *testing.T, f faults) (near, far net.Conn, faulty *plugwiretest.FaultyConn) {
		near, far = plugwiretest.NetPair(t)
		faulty = plugwiretest.Faulty(near, f)
		return faulty, far, faulty
	},
	"between": func(t *testing.T, f faults) (near, far net.Conn, faulty *plugwiretest.FaultyConn) {
		near, a := plugwiretest.NetPair(t)
		b, far := plugwiretest.NetPair(t)
		faulty = plugwiretest.Faulty(a, f)
		plugwiretest.Relay(t, faulty, b)
		return near, far, faulty
	},
}

// Whatever is wrong with a connection, nothing hangs: deadlines hold, and what has
// none ends with the connection; each call ends once, and runs at most once.
func TestX3NothingHangs(t *testing.T) {
	small, mixed := []int{10, 100, 1000}, []int{10, 3000, 70_000, 0, 200_000}
	for _, row := range []struct {
		name   string
		faults faults
		breaks bool // the connection does not survive
		load   load
		tune   func(*plugwire.Config)
	}{
		{name: "nothing wrong", load: load{callers: 4, calls: 5, notes: 20, messages: 20, sizes: mixed}},
		{name: "latency", faults: faults{Latency: 2 * time.Millisecond},
			load: load{callers: 4, calls: 10, notes: 50, messages: 20, sizes: small}},
		{name: "bandwidth", faults: faults{Bandwidth: 4 << 20},
			load: load{callers: 4, calls: 5, notes: 10, messages: 5, sizes: mixed[:3]}},
		{name: "slices", faults: faults{MaxRead: 13, MaxWrite: 7},
			load: load{callers: 4, calls: 5, notes: 20, messages: 10, sizes: small}},
		{name: "all of these", faults: faults{Latency: time.Millisecond, Bandwidth: 4 << 20, MaxRead: 1000, MaxWrite: 100, SlowClose: 20 * time.Millisecond},
			load: load{callers: 4, calls: 5, notes: 10, messages: 5, sizes: small}},
		{name: "slow close", faults: faults{SlowClose: 100 * time.Millisecond},
			load: load{callers: 4, calls: 20, notes: 50, messages: 20, sizes: small}},
		{name: "reset early", faults: faults{Limit: 1500}, breaks: true,
			load: load{callers: 4, calls: 20, notes: 50, messages: 20, sizes: small}},
		{name: "reset late", faults: faults{Limit: 300_000}, breaks: true,
			load: load{callers: 4, calls: 20, notes: 50, messages: 20, sizes: mixed}},
		{name: "reset with a slow close", faults: faults{Limit: 300_000, AtLimit: func(c *plugwiretest.FaultyConn) { go c.Close() }, SlowClose: 100 * time.Millisecond}, breaks: true,
			load: load{callers: 4, calls: 20, notes: 50, messages: 20, sizes: mixed}},
		{name: "timeout early", faults: faults{Limit: 1500, AtLimit: (*plugwiretest.FaultyConn).Stall}, breaks: true,
			load: load{callers: 4, calls: 2, notes: 1, messages: 20, sizes: mixed, timeout: 60 * time.Millisecond}},
		{name: "timeout late", faults: faults{Limit: 300_000, AtLimit: (*plugwiretest.FaultyConn).Stall}, breaks: true,
			load: load{callers: 40, calls: 2, notes: 1, messages: 20, sizes: mixed, timeout: 60 * time.Millisecond}},
		{name: "timeout with keepalive", faults: faults{Limit: 300_000, AtLimit: (*plugwiretest.FaultyConn).Stall}, breaks: true,
			load: load{callers: 4, calls: 20, notes: 50, messages: 20, sizes: mixed},
			tune: func(c *plugwire.Config) { c.KeepAlive = 90 * time.Millisecond }},
		{name: "timeout of writes", faults: faults{Limit: 1500, AtLimit: (*plugwiretest.FaultyConn).Stall}, breaks: true,
			load: load{callers: 4, calls: 20, notes: 50, messages: 20, sizes: []int{200_000}},
			tune: func(c *plugwire.Config) { c.WriteTimeout = 100 * time.Millisecond }},
	} {
		for place, put := range placements {
			t.Run(row.name+"/"+place, func(t *testing.T) {
				watchdog(t)
				near, far, _ := put(t, row.faults)
				x, y := connect(t, near, far, row.tune)
				l := row.load
				l.lag = watchLag(t)
				var broke sync.Once
				var failed error
				l.fail = func(err error) {
					if !row.breaks {
						t.Error(err)
					}
					broke.Do(func() { failed = err })
				}
				var both sync.WaitGroup
				both.Go(func() { l.run(t, x, y) })
				both.Go(func() { l.run(t, y, x) })
				both.Wait()
				if row.breaks && failed == nil {
					t.Error("the fault has not come about")
				}
				closing(t, l.lag, row.faults.SlowClose, x, y)
				x.settled(t)
				y.settled(t)
			})
		}
	}
}

// closing closes both sides while calls are in flight: those end at once, Close in
// its time.
func closing(t *testing.T, lag *lag, slow time.Duration, sides ...*side) {
	var all sync.WaitGroup
	for _, s := range sides {
		started := make(chan struct{})
		all.Go(func() {
			close(started)
			if _, err := s.conn.Call(context.Background(), "block", nil); err == nil {
				t.Error("a call that never ends has ended well")
			}
		})
		<-started
	}
	start := time.Now()
	for _, s := range sides {
		all.Go(func() {
			s.conn.Close()
			<-s.conn.Done()
			if s.conn.Err() == nil {
				t.Error("no Err after Close")
			}
		})
	}
	all.Wait()
	lag.check(t, "Close", time.Since(start)-closeTimeout-slow)
}
