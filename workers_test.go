package plugwire

import (
	"runtime"
	"sync"
	"testing"
)

// TestIdleWorkersEnd has many handlers run at the same time: when they have
// returned, a connection that has nothing to do keeps no goroutines for others.
func TestIdleWorkersEnd(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		unblock := make(chan struct{})
		x, y := pair(t, transport, nil, serves(echoMux(unblock)))
		before := runtime.NumGoroutine()
		const many = 50
		var wg sync.WaitGroup
		for range many {
			wg.Go(func() {
				if _, err := x.Call(background, "block", nil); err != nil {
					t.Error(err)
				}
			})
		}
		until(t, "the handlers", func() bool { return y.servingCount.Load() == many })
		if n := runtime.NumGoroutine(); n < before+many*3/2 {
			t.Errorf("%d goroutines before, %d for %d callers and handlers", before, n, many)
		}
		close(unblock)
		wg.Wait()
		until(t, "the end of idle workers", func() bool {
			return x.workers.none() && y.workers.none() && runtime.NumGoroutine() < before+many/2
		})
		if err := checkCall(background, x, 100, 1); err != nil {
			t.Error(err)
		}
	})
}
