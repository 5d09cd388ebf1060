// Package spinlock has a lock for moments: sections of some hundred nanoseconds in
// which nobody waits for anything.
//
// It costs one atomic operation where a sync.Mutex costs two, and those are most of
// what so short a section costs (BenchmarkAppend: 10 ns instead of 15). Who releases a
// sync.Mutex learns from the second whether somebody sleeps and is to be woken. Here
// nobody is woken: who finds the lock taken looks again, and lets others run meanwhile.
package spinlock

import (
	"sync/atomic"
	"time"

	"github.com/plugwire/plugwire/internal/yield"
)

// A Mutex is free in its zero value. It must not be copied.
type Mutex struct {
	held uint32
}

// How Lock waits. Mostly the lock is free in a moment. If not, its holder's thread was
// interrupted: it may be waiting for this very processor, and to let it run keeps the
// caller's place among the goroutines, which it would lose to all others that can run.
// With one processor, or after a long section, the holder is a goroutine that waits.
const (
	spins   = 100                   // times to look
	threads = 30                    // and to let other threads run
	all     = 1000                  // and other goroutines too
	nap     = 50 * time.Microsecond // then to sleep
)

// TryLock takes the lock if it is free.
func (m *Mutex) TryLock() bool { return atomic.CompareAndSwapUint32(&m.held, 0, 1) }

// Lock waits until the lock is free and takes it.
func (m *Mutex) Lock() {
	for n := 0; atomic.LoadUint32(&m.held) != 0 || !m.TryLock(); n++ {
		switch {
		case n < spins:
		case n < spins+threads:
			yield.Thread()
		case n < spins+threads+all:
			yield.All()
		default:
			time.Sleep(nap)
		}
	}
}

// Unlock releases the lock, which its caller holds.
func (m *Mutex) Unlock() { release(&m.held) }
