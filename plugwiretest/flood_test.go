package plugwiretest_test

import (
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/plugwire/plugwire"
	"github.com/plugwire/plugwire/plugwiretest"
)

// Both ends send all that they can to each other, through buffers that are full
// from the beginning, with windows that hold less than a message.
func TestX8BothEndsFloodEachOther(t *testing.T) {
	roomy := func(*plugwire.Config) {}
	tight := func(c *plugwire.Config) {
		c.Limits = plugwire.Limits{MaxCalls: 6, MaxFrame: 4096, MaxMessage: 1 << 20, MaxRequestBytes: 1 << 20,
			OneWayWindow: 4096, StreamWindow: 4096}
	}
	for _, row := range []struct {
		name string
		pair func(t *testing.T) (near, far net.Conn)
		tune func(*plugwire.Config)
	}{
		{"full sockets", smallBuffers, roomy},
		{"full sockets and windows", smallBuffers, tight},
		{"no buffers", func(*testing.T) (near, far net.Conn) { return net.Pipe() }, roomy},
		{"no buffers and full windows", func(*testing.T) (near, far net.Conn) { return net.Pipe() }, tight},
	} {
		t.Run(row.name, func(t *testing.T) {
			watchdog(t)
			near, far := row.pair(t)
			x, y := connect(t, near, far, row.tune)
			l := load{callers: 3, calls: 3, notes: 40, messages: 12, sizes: []int{100_000, 10, 300_000, 5000},
				lag: watchLag(t), fail: func(err error) { t.Error(err) }}
			more := l
			more.notes = 0 // they are numbered: one sender of them on each side
			var both sync.WaitGroup
			for _, l := range []load{l, more} {
				both.Go(func() { l.run(t, x, y) })
				both.Go(func() { l.run(t, y, x) })
			}
			both.Wait()
			closing(t, l.lag, 0, x, y)
			x.settled(t)
			y.settled(t)
		})
	}
}

// smallBuffers is NetPair with the smallest buffers that the kernel allows.
func smallBuffers(t *testing.T) (near, far net.Conn) {
	near, far = plugwiretest.NetPair(t)
	for _, nc := range []net.Conn{near, far} {
		if s, ok := nc.(interface {
			SetReadBuffer(int) error
			SetWriteBuffer(int) error
		}); ok {
			if err := errors.Join(s.SetReadBuffer(1), s.SetWriteBuffer(1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return near, far
}

// Everything arrives late on top of that, so that each side's credit crosses the
// other's messages.
func TestX8FloodWithLatency(t *testing.T) {
	watchdog(t)
	near, far := smallBuffers(t)
	f := faults{Latency: time.Millisecond}
	x, y := connect(t, plugwiretest.Faulty(near, f), plugwiretest.Faulty(far, f), nil)
	l := load{callers: 4, calls: 2, notes: 20, messages: 10, sizes: []int{20_000, 10}, lag: watchLag(t), fail: func(err error) { t.Error(err) }}
	var both sync.WaitGroup
	both.Go(func() { l.run(t, x, y) })
	both.Go(func() { l.run(t, y, x) })
	both.Wait()
	closing(t, l.lag, 0, x, y)
	x.settled(t)
	y.settled(t)
}
