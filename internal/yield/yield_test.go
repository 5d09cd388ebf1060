package yield

import (
	"runtime"
	"testing"
)

// TestAllLetsOthersRun: with one processor another goroutine gets its turn.
func TestAllLetsOthersRun(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	ran := make(chan struct{})
	go close(ran)
	for range 1000 {
		All()
		select {
		case <-ran:
			return
		default:
		}
	}
	t.Error("the other goroutine did not run")
}
