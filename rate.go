package plugwire

import (
	"fmt"
	"math"

	"github.com/plugwire/plugwire/internal/bucket"
)

// rateLimit is Limits.MaxRate at work. Nil: there is no limit.
type rateLimit struct {
	tokens *bucket.Bucket
	empty  error
}

func newRateLimit(l *Limits) *rateLimit {
	if !(l.MaxRate > 0) || math.IsInf(l.MaxRate, 0) {
		return nil
	}
	burst := l.MaxBurst
	if burst <= 0 {
		burst = int(min(math.Ceil(l.MaxRate), maxWireLen))
	}
	return &rateLimit{bucket.New(l.MaxRate, burst),
		Refused(ResourceExhausted, fmt.Sprintf("more than %v requests per second (Limits.MaxRate)", l.MaxRate))}
}

// admit returns nil when the request's handler may begin. A call is refused at
// once; a one-way message, which can be refused to nobody, waits for its turn.
func (l *rateLimit) admit(r *Request) error {
	wait, ok := l.tokens.Take(r.OneWay())
	switch {
	case !ok:
		return l.empty
	case wait > 0:
		return l.tokens.Await(r.Context(), wait)
	}
	return nil
}
