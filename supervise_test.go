package plugwire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// eventLog is what OnEvent has told.
type eventLog struct {
	mu     sync.Mutex
	events []Event
}

func (l *eventLog) add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

// kinds returns the kinds of the events so far, in order.
func (l *eventLog) kinds() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var kinds []string
	for _, e := range l.events {
		kinds = append(kinds, e.Kind.String())
	}
	return strings.Join(kinds, ", ")
}

// last returns the last event of a kind.
func (l *eventLog) last(k EventKind) (last Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if e.Kind == k {
			last = e
		}
	}
	return last
}

// supervised returns a test whose plugin is restarted soon after it has failed.
func supervised(t *testing.T, behaviour string) (*launchTest, *eventLog) {
	leavesNoDescriptors(t)
	return supervisedInParallel(t, behaviour)
}

func supervisedInParallel(t *testing.T, behaviour string) (*launchTest, *eventLog) {
	watchdog(t)
	lt, log := newParallelLaunchTest(t, behaviour), new(eventLog)
	lt.cfg.Launch.Restart = RestartOnFailure
	lt.cfg.Launch.RestartDelay, lt.cfg.Launch.RestartDelayMax = 5*time.Millisecond, 5*time.Millisecond
	lt.cfg.Launch.MaxRestarts = -1
	lt.cfg.Launch.OnEvent = log.add
	return lt, log
}

func kill(t testing.TB, pid int, sig sysSignal) {
	t.Helper()
	p, err := os.FindProcess(pid)
	if err == nil {
		err = p.Signal(sig)
		p.Release()
	}
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
}

func TestAPluginThatFailsIsRestarted(t *testing.T) {
	for _, scheme := range Transports() {
		t.Run(scheme, func(t *testing.T) {
			lt, log := supervised(t, "good")
			lt.cfg.Transports, lt.cfg.Metrics = []string{scheme}, true
			p := lt.launch()
			for range 3 {
				before := p.Pid()
				lt.greets(p)
				kill(t, before, syscall.SIGKILL)
				<-p.Conn().Done()
				lt.greets(p) // waits for the next process
				if p.Pid() == before {
					t.Error("the same process")
				}
			}
			var s Stats // in which an ending is counted soon after its caller has it
			until(t, "six calls that have ended", func() bool {
				s = p.Stats()
				return methodOf(s, "greet", false, false).Ended[OK] == 6
			})
			if s.CallsSent != 6 || s.Transport != scheme {
				t.Errorf("%d calls were sent over %s", s.CallsSent, s.Transport)
			}
			if s.Restarts != 3 || s.Conns != 1 || s.ConnsOpened != 4 || s.ConnsBroken.Sum() != 3 {
				t.Errorf("%d restarts, %d connections of %d, broken %v", s.Restarts, s.Conns, s.ConnsOpened, s.ConnsBroken)
			}
			if err := p.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			want := "starting, ready" + strings.Repeat(", exited, restarting, starting, ready", 3) + ", exited"
			if got := log.kinds(); got != want {
				t.Errorf("events %s\nwant   %s", got, want)
			}
			if e := log.last(EventRestarting); e.Wait < 4*time.Millisecond {
				t.Errorf("%+v", e)
			}
			if _, err := p.Call(t.Context(), "greet", nil); CodeOf(err) != Unavailable || !NotRun(err) {
				t.Errorf("a call after the end: %v", err)
			}
		})
	}
}

func TestRestartPolicies(t *testing.T) {
	leavesNoDescriptors(t)
	for name, row := range map[string]struct {
		policy   RestartPolicy
		end      string // the status with which it exits, or "kill"
		restarts bool
	}{
		"never, killed":            {NeverRestart, "kill", false},
		"on failure, killed":       {RestartOnFailure, "kill", true},
		"on failure, status 3":     {RestartOnFailure, "3", true},
		"on failure, status 0":     {RestartOnFailure, "0", false},
		"always, status 0":         {RestartAlways, "0", true},
		"always, closed by itself": {RestartAlways, "SIGTERM", true},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			lt, log := supervisedInParallel(t, "good")
			lt.cfg.Launch.Restart = row.policy
			p := lt.launch()
			pid := p.Pid()
			switch row.end {
			case "kill":
				kill(t, pid, syscall.SIGKILL)
			case "SIGTERM":
				kill(t, pid, syscall.SIGTERM)
			default:
				if _, err := p.Call(t.Context(), "exit", []byte(row.end)); err == nil || NotRun(err) {
					t.Errorf("the call that ended it: %v", err)
				}
			}
			if row.restarts {
				until(t, "a restart", func() bool { return p.Pid() != pid })
				lt.greets(p)
				p.Close()
				return
			}
			p.Wait()
			if strings.Contains(log.kinds(), "restarting") {
				t.Error(log.kinds())
			}
		})
	}
}

func TestAPluginThatKeepsFailingIsGivenUp(t *testing.T) {
	lt, log := supervised(t, "good")
	lt.cfg.Launch.MaxRestarts = 3
	p := lt.launch()
	for {
		if _, err := p.Call(t.Context(), "exit", []byte("3")); NotRun(err) {
			break
		}
		<-p.Conn().Done()
	}
	err := p.Wait()
	if CodeOf(err) != Unavailable || !strings.Contains(fmt.Sprint(err), "given up after 3 restarts within 1m0s") ||
		!strings.Contains(fmt.Sprint(err), "exiting on request") {
		t.Error(err)
	}
	if got, want := log.kinds(), "starting, ready"+strings.Repeat(", exited, restarting, starting, ready", 3)+", exited, given up"; got != want {
		t.Errorf("events %s\nwant   %s", got, want)
	}
	if err := p.Close(); CodeOf(err) != Unavailable {
		t.Errorf("Close: %v", err)
	}
}

func TestStartsThatFailAreTriedAgain(t *testing.T) {
	lt, log := supervised(t, "exits 3")
	lt.cfg.Launch.StartRetries = 2
	_, err := Launch(t.Context(), lt.cmd, lt.cfg)
	checkLaunchError(t, err, Unavailable, "exit status 3")
	if got, want := log.kinds(), "starting, start failed, restarting, starting, start failed, restarting, starting, start failed"; got != want {
		t.Errorf("events %s\nwant   %s", got, want)
	}
	// A restart whose start fails is followed by the next.
	lt, log = supervised(t, "good once")
	lt.cfg.Launch.MaxRestarts = 2
	p := lt.launch()
	kill(t, p.Pid(), syscall.SIGKILL)
	if err := p.Wait(); !strings.Contains(fmt.Sprint(err), "given up after 2 restarts") || !strings.Contains(fmt.Sprint(err), "exit status 7") {
		t.Error(err)
	}
	if got, want := log.kinds(), "starting, ready, exited"+strings.Repeat(", restarting, starting, start failed", 2)+", given up"; got != want {
		t.Errorf("events %s\nwant   %s", got, want)
	}
}

func init() {
	behaviours["good once"] = func() {
		mark := os.Getenv(pidEnv) + ".once"
		if _, err := os.Stat(mark); err == nil {
			os.Exit(7)
		}
		must(os.WriteFile(mark, nil, 0o600))
		must(ServePlugin(testPluginMux(), nil))
	}
	behaviours["sickens"] = func() {
		var asked atomic.Int32
		m := testPluginMux()
		m.HandleFunc("health", func(context.Context, []byte) ([]byte, error) {
			if asked.Add(1) > 2 {
				return nil, errors.New("I do not feel well")
			}
			return nil, nil
		})
		must(ServePlugin(m, nil))
	}
	behaviours["counts"] = func() { must(ServePlugin(countingMux(), nil)) }
}

func TestAnUnhealthyPluginIsReplaced(t *testing.T) {
	lt, log := supervised(t, "sickens")
	lt.cfg.Launch.HealthMethod = "health"
	lt.cfg.Launch.HealthInterval = 20 * time.Millisecond
	lt.cfg.Launch.HealthThreshold = 2
	p := lt.launch()
	pid := p.Pid()
	until(t, "another process", func() bool { return p.Pid() != pid })
	if e := log.last(EventUnhealthy); e.Pid != pid || !strings.Contains(fmt.Sprint(e.Err), "I do not feel well") {
		t.Errorf("%+v", e)
	}
	lt.greets(p)
	p.Close()
}

func init() { waitingLaunches["CallsGiveUpWaitingForAProcess"] = testCallsGiveUpWaitingForAProcess }

func testCallsGiveUpWaitingForAProcess(t *testing.T) {
	lt, _ := supervisedInParallel(t, "good")
	lt.cfg.Launch.RestartDelay, lt.cfg.Launch.RestartDelayMax = time.Hour, time.Hour
	lt.cfg.Launch.RestartWait = 50 * time.Millisecond
	p := lt.launch()
	kill(t, p.Pid(), syscall.SIGKILL)
	<-p.Conn().Done()
	_, err := p.Call(t.Context(), "greet", nil)
	wantCode(t, err, Unavailable, true)
	if !strings.Contains(fmt.Sprint(err), "RestartWait") {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := p.Call(ctx, "greet", nil); !errors.Is(err, context.DeadlineExceeded) || !NotRun(err) {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"Notify": p.Notify(t.Context(), "greet", nil),
		"DoAll":  p.DoAll(t.Context(), []*Call{{Method: "greet"}, {Method: "greet"}}),
		"OpenStream": func() error {
			_, err := p.OpenStream(t.Context(), "greet")
			return err
		}(),
	} {
		if CodeOf(err) != Unavailable || !NotRun(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	waiting := make(chan error, 1)
	p.cfg.Launch.RestartWait = time.Hour // read by calls only
	go func() { _, err := p.Call(context.Background(), "greet", nil); waiting <- err }()
	if err := p.Close(); err == nil {
		t.Error("the plugin was killed, and Close says nothing")
	}
	wantCode(t, receive(t, "the call that waited", waiting), Unavailable, true)
}

// countingMux counts how often each number was run, in the file that pidEnv names,
// to which all processes of a test append; its answers say that they did.
func countingMux() *Mux {
	f, err := os.OpenFile(os.Getenv(pidEnv)+".ran", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	must(err)
	m := NewMux()
	m.HandleFunc("run", func(_ context.Context, number []byte) ([]byte, error) {
		if _, err := f.Write(number); err != nil {
			return nil, err
		}
		return number, nil
	})
	return m
}

// ran reads how often each number was run.
func (t *launchTest) ran() map[uint64]int {
	b, err := os.ReadFile(t.pid + ".ran")
	if err != nil {
		t.Fatal(err)
	}
	times := make(map[uint64]int)
	for ; len(b) >= 8; b = b[8:] {
		times[binary.LittleEndian.Uint64(b)]++
	}
	return times
}

// runs makes calls until told to stop, and returns those that were answered and
// those that failed and may have run. It calls end with each call's duration.
func runs(p *Plugin, first uint64, stop <-chan struct{}, report func(string, ...any), end func(start time.Time, err error)) (answered, unsure []uint64) {
	number := make([]byte, 8)
	for n := first; ; n++ {
		select {
		case <-stop:
			return answered, unsure
		default:
		}
		binary.LittleEndian.PutUint64(number, n)
		start := time.Now()
		reply, err := p.Call(context.Background(), "run", number)
		end(start, err)
		switch {
		case err == nil && string(reply) == string(number):
			answered = append(answered, n)
		case err == nil:
			report("the reply to %x is %x", number, reply)
		case NotRun(err) || CodeOf(err) != Unavailable:
			report("call %d: %v", n, err)
		default:
			unsure = append(unsure, n)
		}
	}
}

// X1: a plugin is killed at random points under load. Calls in flight fail at
// once and say that they may have run; all others succeed, on the next process;
// nothing is lost and nothing runs twice.
func TestX1KilledPluginsUnderLoad(t *testing.T) {
	lt, log := supervised(t, "counts")
	kills := 15
	if longTests {
		kills = 100
	}
	p := lt.launch()
	var killed atomic.Int64 // when, in nanoseconds since start
	begin := time.Now()
	stop := make(chan struct{})
	var mu sync.Mutex
	var answered, unsure []uint64
	var worst time.Duration
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			a, u := runs(p, uint64(i)<<40, stop, t.Errorf, func(start time.Time, err error) {
				if err != nil {
					mu.Lock()
					worst = max(worst, time.Since(begin)-time.Duration(killed.Load()))
					mu.Unlock()
				}
			})
			mu.Lock()
			defer mu.Unlock()
			answered, unsure = append(answered, a...), append(unsure, u...)
		})
	}
	for n := range kills {
		time.Sleep(time.Duration(n*7%13) * time.Millisecond) // anywhere
		pid := p.Pid()
		killed.Store(int64(time.Since(begin)))
		kill(t, pid, syscall.SIGKILL)
		until(t, "the next process", func() bool { return p.Pid() != pid })
	}
	close(stop)
	wg.Wait()
	p.Close()
	times := lt.ran()
	for _, n := range answered {
		if times[n] != 1 {
			t.Errorf("call %d was answered and ran %d times", n, times[n])
		}
		delete(times, n)
	}
	for _, n := range unsure {
		if times[n] > 1 {
			t.Errorf("call %d failed and ran %d times", n, times[n])
		}
		delete(times, n)
	}
	for n, k := range times {
		t.Errorf("call %d was never made and ran %d times", n, k)
	}
	if restarts := strings.Count(log.kinds(), "restarting"); restarts != kills {
		t.Errorf("%d restarts after %d kills", restarts, kills)
	}
	if len(unsure) == 0 || len(answered) < kills {
		t.Errorf("%d calls answered, %d in flight at a kill: this shows nothing", len(answered), len(unsure))
	}
	t.Logf("%d kills: %d calls answered, %d may have run, the last of those %v after its kill", kills, len(answered), len(unsure), worst)
	if worst > 2*time.Second { // 100 ms on a quiet machine
		t.Errorf("a pending call failed only %v after the kill", worst)
	}
}

// Idempotent calls are made again on the next process.
func TestIdempotentCallsSurviveAKill(t *testing.T) {
	lt, _ := supervised(t, "good")
	p := lt.launch()
	var done atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c := Call{Method: "greet", Request: []byte("you"), Reply: []byte("> "), Idempotent: true}
				if err := p.Do(context.Background(), &c); err != nil || string(c.Reply) != "> hello, you" {
					t.Errorf("%q, %v", c.Reply, err)
					return
				}
				calls := []*Call{{Method: "greet", Request: []byte("a"), Idempotent: true}, {Method: "greet", Request: []byte("b"), Idempotent: true}}
				if err := p.DoAll(context.Background(), calls); err != nil || string(calls[1].Reply) != "hello, b" {
					t.Errorf("%q, %v", calls[1].Reply, err)
					return
				}
				done.Add(1)
			}
		})
	}
	for range 5 {
		n, pid := done.Load(), p.Pid()
		until(t, "calls", func() bool { return done.Load() > n+10 })
		kill(t, pid, syscall.SIGKILL)
		until(t, "the next process", func() bool { return p.Pid() != pid })
	}
	close(stop)
	wg.Wait()
	p.Close()
}

// Swapping under load: no call fails, and none runs twice.
func TestSwapUnderLoad(t *testing.T) {
	for _, policy := range []RestartPolicy{NeverRestart, RestartAlways} {
		t.Run(fmt.Sprint(policy), func(t *testing.T) {
			lt, log := supervised(t, "counts")
			lt.cfg.Launch.Restart = policy
			swaps, least := 5, 5000
			if longTests {
				swaps, least = 20, 1000000
			}
			p := lt.launch()
			stop := make(chan struct{})
			var made atomic.Int64
			var mu sync.Mutex
			var answered []uint64
			var wg sync.WaitGroup
			for i := range 16 {
				wg.Go(func() {
					a, u := runs(p, uint64(i)<<40, stop, t.Errorf, func(_ time.Time, err error) {
						made.Add(1)
						if err != nil {
							t.Errorf("a call failed: %v", err)
						}
					})
					mu.Lock()
					defer mu.Unlock()
					answered = append(answered, a...)
					if len(u) > 0 {
						t.Errorf("%d calls may have run", len(u))
					}
				})
			}
			for n := range swaps {
				until(t, "calls", func() bool { return made.Load() >= int64(least*n/swaps) })
				before := p.Pid()
				if err := p.Swap(t.Context(), nil); err != nil {
					t.Fatal(err)
				}
				if p.Pid() == before {
					t.Error("the same process")
				}
			}
			until(t, "calls", func() bool { return made.Load() >= int64(least) })
			close(stop)
			wg.Wait()
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			times := lt.ran()
			for _, n := range answered {
				if times[n] != 1 {
					t.Errorf("call %d was answered and ran %d times", n, times[n])
				}
			}
			if len(times) != len(answered) {
				t.Errorf("%d calls ran, %d were answered", len(times), len(answered))
			}
			if strings.Contains(log.kinds(), "restarting") {
				t.Error(log.kinds())
			}
			t.Logf("%d calls during %d swaps", len(answered), swaps)
		})
	}
}

func TestSwapThatFailsChangesNothing(t *testing.T) {
	lt, _ := supervised(t, "good")
	p := lt.launch()
	pid := p.Pid()
	bad := *lt.cmd
	bad.Env = append(append([]string(nil), lt.cmd.Env...), behaveEnv+"=exits 3", pidEnv+"=")
	checkLaunchError(t, p.Swap(t.Context(), &bad), Unavailable, "exit status 3")
	lt.greets(p)
	if p.Pid() != pid {
		t.Error("another process")
	}
	p.Close()
	if err := p.Swap(t.Context(), nil); CodeOf(err) != FailedPrecondition {
		t.Errorf("Swap after Close: %v", err)
	}
}

// TestCloseDuringASwapEndsBoth: also the version that is still draining.
func TestCloseDuringASwapEndsBoth(t *testing.T) {
	lt := newLaunchTest(t, "good")
	p, ended := lt.hang(1)
	first, old := p.Pid(), p.cur.Load()
	swapped := make(chan error, 1)
	go func() { swapped <- p.Swap(background, nil) }()
	until(t, "the new version", func() bool { return p.Pid() != first })
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if !old.proc.ended(0) {
		t.Error("the old version still runs")
	}
	if err := receive(t, "the call", ended); err == nil {
		t.Error("the call that hangs has ended well")
	}
	receive(t, "Swap", swapped)
}
