// Package bucket counts what may begin in a time: the token bucket (J. Turner, "New
// directions in communications", 1986). It holds burst tokens at first and at most,
// and gains rate each second. It is counted when it is asked, by the monotonic clock;
// there is no goroutine, and no timer but that of who waits.
package bucket

import (
	"context"
	"math"
	"sync"
	"time"
)

// A Bucket may be used by any number of goroutines.
type Bucket struct {
	rate, burst float64

	mu     sync.Mutex
	tokens float64   // less than 0 by those that are waited for
	as     time.Time // tokens are as of then
}

// New returns a full bucket. rate must be positive and finite, burst at least 1.
func New(rate float64, burst int) *Bucket {
	return &Bucket{rate: rate, burst: float64(burst), tokens: float64(burst), as: time.Now()}
}

// Take takes a token, or says that there is none. Who can wait may take one that
// is not there yet, and must Await so long before going on.
func (b *Bucket) Take(canWait bool) (wait time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now() // under the lock, so that it never goes back
	b.tokens = min(b.burst, b.tokens+now.Sub(b.as).Seconds()*b.rate)
	b.as = now
	if b.tokens < 1 && !canWait {
		return 0, false
	}
	b.tokens--
	if b.tokens >= 0 {
		return 0, true
	}
	nanos := math.Ceil(-b.tokens / b.rate * 1e9)
	if nanos >= math.MaxInt64 { // centuries, by a tiny rate
		return math.MaxInt64, true
	}
	return time.Duration(nanos), true
}

// Await waits for a token that was taken before it was there. When ctx ends first,
// the token goes back and Await returns ctx's error.
func (b *Bucket) Await(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		b.mu.Lock()
		b.tokens++ // Take looks that they are not more than burst
		b.mu.Unlock()
		return ctx.Err()
	}
}
