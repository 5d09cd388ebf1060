package middleware

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/plugwire/plugwire"
)

// RateLimit returns middleware that lets rate requests per second begin, over all
// connections, and after a pause up to burst at once. A call for which nothing is
// left is refused at once with code ResourceExhausted, and plugwire.NotRun is true
// of the error. A one-way message waits for its turn, as the package says; it takes
// its turn before calls that come later do, so where one-way messages alone use the
// rate up, give them a limit of their own.
//
// The algorithm is the token bucket (J. Turner, "New directions in communications",
// 1986): it holds burst tokens at first and at most, and gains rate each second. It
// is counted when a request comes, by the monotonic clock; there is no goroutine,
// and no timer but that of a message that waits.
//
// RateLimit panics when rate is not positive and finite, or burst is less than 1.
func RateLimit(rate float64, burst int) func(plugwire.Handler) plugwire.Handler {
	if !(rate > 0) || math.IsInf(rate, 0) || burst < 1 {
		panic(fmt.Sprintf("plugwire: RateLimit(%v, %d): must be a positive rate and at least 1", rate, burst))
	}
	b := newBucket(rate, burst)
	return func(next plugwire.Handler) plugwire.Handler { return &metered{bucket: b, next: next} }
}

type metered struct {
	bucket *bucket
	next   plugwire.Handler
}

// ServeCall implements plugwire.Handler.
func (h *metered) ServeCall(r *plugwire.Request, reply []byte) ([]byte, error) {
	wait, err := h.bucket.take(r.OneWay())
	if err == nil && wait > 0 {
		err = h.bucket.await(r.Context(), wait)
	}
	if err != nil {
		return reply, err
	}
	return h.next.ServeCall(r, reply)
}

type bucket struct {
	rate, burst float64
	empty       error

	mu     sync.Mutex
	tokens float64   // less than 0 by those that one-way messages wait for
	as     time.Time // tokens are as of then
}

func newBucket(rate float64, burst int) *bucket {
	return &bucket{
		rate: rate, burst: float64(burst), tokens: float64(burst), as: time.Now(),
		empty: plugwire.Refused(plugwire.ResourceExhausted, fmt.Sprintf("RateLimit: more than %v requests per second", rate)),
	}
}

// take takes a token or, of a call, refuses. A one-way message may take one that
// is not there yet, and must wait so long before it goes on.
func (b *bucket) take(oneWay bool) (wait time.Duration, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now() // under the lock, so that it never goes back
	b.tokens = min(b.burst, b.tokens+now.Sub(b.as).Seconds()*b.rate)
	b.as = now
	if b.tokens < 1 && !oneWay {
		return 0, b.empty
	}
	b.tokens--
	if b.tokens >= 0 {
		return 0, nil
	}
	nanos := math.Ceil(-b.tokens / b.rate * 1e9)
	if nanos >= math.MaxInt64 { // centuries, by a tiny rate
		return math.MaxInt64, nil
	}
	return time.Duration(nanos), nil
}

// await waits for a token that was taken before it was there. When ctx ends first,
// the token goes back.
func (b *bucket) await(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		b.mu.Lock()
		b.tokens++ // take looks that they are not more than burst
		b.mu.Unlock()
		return refusedBy(ctx, "its turn")
	}
}
