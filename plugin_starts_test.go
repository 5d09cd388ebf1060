package plugwire

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func init() {
	children["exits"] = func() {}
}

// longRun chooses how often something is repeated.
func longRun(short, long int) int {
	if os.Getenv("PLUGWIRE_LONG") != "" {
		return long
	}
	return short
}

// TestManyStartsLeaveNothing starts and stops plugins one after the other, and
// compares launch to first reply with what fork, exec and exit of the same
// binary take, in turns.
func TestManyStartsLeaveNothing(t *testing.T) {
	lt := newLaunchTest(t, "good") // which looks for files, processes and descriptors
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	lt.cmd.Env = append(lt.cmd.Env, "TMPDIR="+tmp)
	runs := longRun(10, 1000)
	var ours, bare []time.Duration
	for range runs {
		start := time.Now()
		exits := childCommand("exits")
		if err := exits.Run(); err != nil {
			t.Fatal(err)
		}
		bare = append(bare, time.Since(start))
		start = time.Now()
		p := lt.launch()
		lt.greets(p)
		ours = append(ours, time.Since(start))
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if lt.alive() {
			t.Fatal("the process was left behind")
		}
	}
	for _, dir := range []string{tmp, lt.cfg.Unix.Dir} {
		if left, err := filepath.Glob(dir + "/*"); err != nil || len(left) > 0 {
			t.Errorf("left %q, %v", left, err)
		}
	}
	slices.Sort(ours)
	slices.Sort(bare)
	a, b := ours[runs/2], bare[runs/2]
	t.Logf("%d starts: launch to first reply %v, fork, exec and exit %v (medians): ratio %.2f", runs, a, b, float64(a)/float64(b))
}
