package plugwire

import (
	"sync"
	"time"

	"github.com/plugwire/plugwire/internal/tick"
)

// A monitor is one goroutine, there only while one of its connections has run
// handlers or lent its reading role lately. It looks at their role words in pairs of
// looks a millisecond apart; a word that it sees twice belongs to a handler that
// takes long, a borrower that waits long, or to nobody, and it sees to it that
// somebody reads. So nobody else has to look at a clock. Between the pairs it pauses:
// looks every millisecond cost 64 callers a tenth of their calls per second. It must
// not use a timer of the runtime: see package tick.
type monitor struct {
	mu      sync.Mutex
	conns   []*Conn
	running bool
	only    <-chan struct{} // nil, or closed when the only connection is over
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
	c.shared.monitor.add(c)
}

func (m *monitor) add(c *Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conns = append(m.conns, c)
	if !m.running {
		m.running = true
		go m.run()
	}
}

func (m *monitor) run() {
	var conns []*Conn
	sleeper := tick.NewSleeper()
	defer sleeper.Close()
	for {
		if !m.sleep(sleeper, monitorPause) {
			return
		}
		m.mu.Lock()
		conns = append(conns[:0], m.conns...)
		m.mu.Unlock()
		quiet, again := 0, false
		for _, c := range conns {
			if c.looked() {
				quiet++
			} else if c.lastRole&roleMask != roleReading {
				again = true
			}
		}
		if again {
			if !m.sleep(sleeper, monitorTick) {
				return
			}
			for _, c := range conns {
				c.looked()
			}
		}
		if quiet > 0 && !m.dropQuiet() {
			return
		}
	}
}

// sleep reports whether there is a connection still. In a bubble of testing/synctest
// time passes for sleepers only, and ends with the test.
func (m *monitor) sleep(s *tick.Sleeper, d time.Duration) bool {
	if m.only == nil {
		s.Sleep(d)
		return true
	}
	select {
	case <-time.After(d):
		return true
	case <-m.only:
		return false
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
func (m *monitor) dropQuiet() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	kept := m.conns[:0]
	for _, c := range m.conns {
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
	clear(m.conns[len(kept):])
	m.conns = kept
	m.running = len(kept) > 0
	return m.running
}
