package plugwiretest_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plugwire/plugwire"
	"github.com/plugwire/plugwire/plugwiretest"
)

// What the package comment says of bubbles: hours pass at once.
func TestPairInABubble(t *testing.T) {
	for range 3 {
		synctest.Test(t, func(t *testing.T) {
			m := plugwire.NewMux()
			m.HandleFunc("sleep", func(ctx context.Context, _ []byte) ([]byte, error) {
				select {
				case <-time.After(2 * time.Hour):
					return nil, nil
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			})
			a, b := net.Pipe()
			x, _ := plugwiretest.PairOver(t, a, b, nil, &plugwire.Config{Mux: m})
			for _, timeout := range []time.Duration{time.Hour, 3 * time.Hour} {
				ctx, cancel := context.WithTimeout(t.Context(), timeout)
				start := time.Now()
				_, err := x.Call(ctx, "sleep", nil)
				if took := time.Since(start); took != min(timeout, 2*time.Hour) || errors.Is(err, context.DeadlineExceeded) != (timeout < 2*time.Hour) {
					t.Errorf("timeout %v: %v after %v", timeout, err, took)
				}
				cancel()
			}
		})
	}
}
