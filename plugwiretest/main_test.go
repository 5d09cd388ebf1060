package plugwiretest_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails when goroutines of this module, or descriptors, are left in the end.
func TestMain(m *testing.M) {
	if r, w, err := os.Pipe(); err == nil { // the runtime's poller, whose descriptors stay
		r.Close()
		w.Close()
	}
	before := descriptors()
	code := m.Run()
	if code == 0 {
		if leak := leaks(before); leak != "" {
			fmt.Fprintln(os.Stderr, leak)
			code = 1
		}
	}
	os.Exit(code)
}

// leaks gives what tests left behind some time to end and describes what does not.
func leaks(before int) (report string) {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		report = ""
		for g := range strings.SplitSeq(stacks(), "\n\n") {
			if strings.Contains(g, "plugwire/plugwire") && !strings.Contains(g, "TestMain") {
				report += g + "\n\n"
			}
		}
		if report != "" {
			report = "leaked goroutines:\n\n" + report
		} else if now := descriptors(); now > before {
			report = fmt.Sprintf("leaked descriptors: %d before the tests, %d after", before, now)
		}
		if report == "" || time.Now().After(deadline) {
			return report
		}
	}
}

// descriptors counts this process's open descriptors where that is easy. The
// monitor's timer does not count, which stays for a while.
func descriptors() (n int) {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && to != "anon_inode:[timerfd]" {
			n++
		}
	}
	return n
}

func stacks() string {
	buf := make([]byte, 4<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

// watchdog panics, with all stacks, when the test hangs.
func watchdog(t testing.TB) {
	timer := time.AfterFunc(45*time.Second, func() {
		fmt.Fprintf(os.Stderr, "%s hangs:\n\n%s\n", t.Name(), stacks())
		panic(t.Name() + " hangs")
	})
	t.Cleanup(func() { timer.Stop() })
}
