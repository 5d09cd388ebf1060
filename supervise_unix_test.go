//go:build unix

package plugwire

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func init() { waitingLaunches["AStoppedPluginIsReplaced"] = testAStoppedPluginIsReplaced }

// A stopped process does not hang a call without a deadline.
func testAStoppedPluginIsReplaced(t *testing.T) {
	lt, _ := supervisedInParallel(t, "good")
	lt.cfg.KeepAlive = 150 * time.Millisecond
	lt.cfg.Launch.ExitTimeout = 100 * time.Millisecond
	p := lt.launch()
	pid := p.Pid()
	lt.greets(p)
	kill(t, pid, syscall.SIGSTOP)
	if _, err := p.Call(t.Context(), "greet", nil); err != nil && NotRun(err) {
		t.Errorf("the call that was not answered: %v", err)
	}
	until(t, "another process", func() bool { return p.Pid() != pid })
	lt.greets(p)
	p.Close()
}

// TestAStoppedPluginIsGivenUpByDefault is that with no setting at all: the pending
// call fails within 45 s.
func TestAStoppedPluginIsGivenUpByDefault(t *testing.T) {
	if !longTests {
		t.Skip("takes 40 s: set PLUGWIRE_LONG")
	}
	lt := newLaunchTest(t, "good")
	p := lt.launch()
	lt.greets(p)
	kill(t, p.Pid(), syscall.SIGSTOP)
	start := time.Now()
	_, err := p.Call(background, "greet", nil)
	if took := time.Since(start); err == nil || CodeOf(err) != Unavailable || NotRun(err) || took > 45*time.Second {
		t.Errorf("after %v: %v", took, err)
	} else {
		t.Logf("after %v: %v", took, err)
	}
}

func init() { waitingLaunches["ASilentPluginIsUnhealthy"] = testASilentPluginIsUnhealthy }

// testASilentPluginIsUnhealthy: one that PING gives up is reported so.
func testASilentPluginIsUnhealthy(t *testing.T) {
	lt := newParallelLaunchTest(t, "good")
	lt.cfg.KeepAlive, lt.cfg.Launch.ExitTimeout = 50*time.Millisecond, 50*time.Millisecond
	events := make(chan Event, 10)
	lt.cfg.Launch.OnEvent = func(e Event) { events <- e }
	p := lt.launch()
	kill(t, p.Pid(), syscall.SIGSTOP)
	err := p.Wait()
	if err == nil || !strings.Contains(err.Error(), "no sign of life") {
		t.Errorf("Wait says %v", err)
	}
	var kinds []EventKind
	for len(events) > 0 {
		kinds = append(kinds, (<-events).Kind)
	}
	if want := []EventKind{EventStarting, EventReady, EventUnhealthy, EventExited}; !slices.Equal(kinds, want) {
		t.Errorf("%v, want %v", kinds, want)
	}
}
