package yield

import (
	"runtime"
	"testing"
)

// TestThreadLetsOthersRun: with one processor another goroutine gets its turn.
func TestThreadLetsOthersRun(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	ran := make(chan struct{})
	go close(ran)
	for range 1000 {
		Thread()
		select {
		case <-ran:
			return
		default:
		}
	}
	t.Error("the other goroutine did not run")
}
