package resolver

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails when goroutines of this module are left in the end.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if leak := leaks(); leak != "" {
			fmt.Fprintln(os.Stderr, "leaked goroutines:\n\n"+leak)
			code = 1
		}
	}
	os.Exit(code)
}

// leaks gives goroutines some time to end and returns the stacks of those that do not.
func leaks() (report string) {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		report = ""
		for g := range strings.SplitSeq(string(buf), "\n\n") {
			if strings.Contains(g, "plugwire/plugwire") && !strings.Contains(g, "TestMain") {
				report += g + "\n\n"
			}
		}
		if report == "" || time.Now().After(deadline) {
			return report
		}
	}
}
