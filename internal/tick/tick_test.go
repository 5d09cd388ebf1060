package tick

import (
	"runtime"
	"testing"
	"time"
)

func TestSleepsAtLeastAsLongAsAsked(t *testing.T) {
	s := NewSleeper()
	defer s.Close()
	if runtime.GOOS == "linux" && s.timer == (timer{}) {
		t.Error("no timer descriptor")
	}
	for _, d := range []time.Duration{-time.Second, 0, time.Microsecond, time.Millisecond, 20 * time.Millisecond, time.Millisecond} {
		start := time.Now()
		s.Sleep(d)
		if took := time.Since(start); took < d || took > d+5*time.Second {
			t.Errorf("Sleep(%v) took %v", d, took)
		}
	}
}

// Without a descriptor, or with one that fails, it sleeps all the same.
func TestSleepsAfterClose(t *testing.T) {
	s := NewSleeper()
	s.Close()
	s.Close()
	start := time.Now()
	if s.Sleep(5 * time.Millisecond); time.Since(start) < 5*time.Millisecond {
		t.Errorf("took %v", time.Since(start))
	}
}

func TestSleepDoesNotAllocate(t *testing.T) {
	s := NewSleeper()
	defer s.Close()
	if n := testing.AllocsPerRun(20, func() { s.Sleep(time.Microsecond) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
