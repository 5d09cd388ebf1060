package plugwire

import (
	"sync"
	"time"

	"github.com/plugwire/plugwire/internal/tick"
)

// The monitor is one goroutine per process, there only while some connection
// has run handlers or lent its reading role lately. It looks at their role
// words in pairs of looks a millisecond apart; a word that it sees twice belongs
// to a handler that takes long, a borrower that waits long, or to nobody, and it
// sees to it that somebody reads. So nobody else has to look at a clock. Between
// the pairs it pauses: looks every millisecond cost 64 callers a tenth of their
// calls per second. It must not use a timer of the runtime: see package tick.
var monitor struct {
	mu      sync.Mutex
	conns   []*Conn
	running bool
}

const (
	monitorTick  = time.Millisecond     // from the first look to the second
	monitorPause = 5 * time.Millisecond // from pair to pair
	// quietTicks is for how many looks a connection is watched after its role last changed.
	quietTicks = 8
)

// watch has the monitor look at c's role. Who changes the role to anything but
// roleReading does so first and calls watch after.
func (c *Conn) watch() {
	if c.watched.Load() || !c.watched.CompareAndSwap(false, true) {
		return
	}
	monitor.mu.Lock()
	monitor.conns = append(monitor.conns, c)
	start := !monitor.running
	monitor.running = true
	monitor.mu.Unlock()
	if start {
		go runMonitor()
	}
}

func runMonitor() {
	var conns []*Conn
	sleeper := tick.NewSleeper()
	defer sleeper.Close()
	for {
		sleeper.Sleep(monitorPause)
		monitor.mu.Lock()
		conns = append(conns[:0], monitor.conns...)
		monitor.mu.Unlock()
		quiet, again := 0, false
		for _, c := range conns {
			if c.looked() {
				quiet++
			} else if c.lastRole&roleMask != roleReading {
				again = true
			}
		}
		if again {
			sleeper.Sleep(monitorTick)
			for _, c := range conns {
				c.looked()
			}
		}
		if quiet > 0 && !dropQuiet() {
			return
		}
	}
}

// looked acts on c's role and reports whether it has been quiet for long, and
// keeps no workers.
func (c *Conn) looked() bool {
	word := c.role.Load()
	if word != c.lastRole {
		c.lastRole, c.quiet = word, 0
		return false
	}
	switch word & roleMask {
	case roleHandler:
		c.takeOver(word)
	case roleBorrowed:
		c.nc.SetReadDeadline(time.Unix(1, 0)) // see noBytes
	case roleFree:
		if c.role.CompareAndSwap(word, nextRole(word, roleReading)) {
			c.reader.found = true
			c.workers.run(c.reader)
		}
	case roleReading:
		if c.quiet++; c.quiet > quietTicks {
			if c.workers.trim() {
				return true
			}
			c.quiet = 0 // one more round for those that are idle now
		}
	}
	return false
}

// dropQuiet stops watching what is quiet, and reports whether anything is left.
func dropQuiet() bool {
	monitor.mu.Lock()
	defer monitor.mu.Unlock()
	kept := monitor.conns[:0]
	for _, c := range monitor.conns {
		if c.quiet > quietTicks {
			c.quiet = 0
			c.watched.Store(false)
			// A change that came before the store found c watched.
			if c.role.Load() == c.lastRole && c.workers.none() || !c.watched.CompareAndSwap(false, true) {
				continue
			}
		}
		kept = append(kept, c)
	}
	clear(monitor.conns[len(kept):])
	monitor.conns = kept
	monitor.running = len(kept) > 0
	return monitor.running
}
