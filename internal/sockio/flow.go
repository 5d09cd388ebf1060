//go:build unix

package sockio

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/plugwire/plugwire/internal/bubble"
)

const (
	// flowSize is how many bytes of one call make it worth a timer. A timer costs
	// those who wait: where callers take turns that is more than it gains.
	flowSize = 16 << 10
	// flowTick is how soon the timer is due: how much later than usual a goroutine may
	// lose a processor on which others wait. It is set again when there was such a call
	// meanwhile. One that is due in 5 ms makes messages of 64 KiB 0.8 times as fast.
	flowTick = 50 * time.Millisecond
)

// A flow has a timer of the runtime's pending while its calls move much.
type flow struct {
	going atomic.Bool // there is such a timer; or it is due, and a goroutine runs
	large atomic.Bool // there was a large call since it was set
	mu    sync.Mutex
	timer *time.Timer
}

// process is the flow of all connections: the monitor is the process's too.
var process flow

// moved is told how many bytes a call has moved.
func (f *flow) moved(n int) {
	if n < flowSize {
		return
	}
	if !f.large.Load() { // shared by all: written seldom
		f.large.Store(true)
	}
	if !f.going.Load() {
		f.start()
	}
}

func (f *flow) start() {
	if bubble.Inside() {
		return // its timers are nobody else's
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.timer == nil {
		f.timer = time.AfterFunc(flowTick, f.due)
	} else {
		f.timer.Reset(flowTick)
	}
	f.going.Store(true)
}

func (f *flow) due() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.large.Swap(false) {
		f.timer.Reset(flowTick)
	} else {
		f.going.Store(false)
	}
}
