package middleware

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/plugwire/plugwire"
	tokens "github.com/plugwire/plugwire/internal/bucket"
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
// and no timer but that of a message that waits. Config.Limits.MaxRate is the same
// limit for all that a Server serves.
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

// bucket says in this package's words what a bucket.Bucket says.
type bucket struct {
	tokens *tokens.Bucket
	empty  error
}

func newBucket(rate float64, burst int) *bucket {
	return &bucket{tokens: tokens.New(rate, burst),
		empty: plugwire.Refused(plugwire.ResourceExhausted, fmt.Sprintf("RateLimit: more than %v requests per second", rate))}
}

// take takes a token or, of a call, refuses. A one-way message may take one that
// is not there yet, and must wait so long before it goes on.
func (b *bucket) take(oneWay bool) (wait time.Duration, err error) {
	wait, ok := b.tokens.Take(oneWay)
	if !ok {
		return 0, b.empty
	}
	return wait, nil
}

// await waits for a token that was taken before it was there.
func (b *bucket) await(ctx context.Context, wait time.Duration) error {
	if b.tokens.Await(ctx, wait) != nil {
		return refusedBy(ctx, "its turn")
	}
	return nil
}
