// Package bubble tells the bubbles of testing/synctest apart. What is shared by a
// process must not have a bubble's channels, timers and goroutines in it: the runtime
// ends the process when somebody else touches them.
package bubble

import "time"

// Inside reports whether the calling goroutine is in a bubble. Its clock is told by
// the times, which have no monotonic part there (Go 1.25 and 1.26).
func Inside() bool {
	now := time.Now()
	return now == now.Round(0)
}
