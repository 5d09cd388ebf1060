package plugwire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The plugin that tests launch is the test binary itself: behaveEnv says how it
// behaves, pidEnv names a file for its process id.
const (
	behaveEnv = "PLUGWIRE_TEST_BEHAVE"
	pidEnv    = "PLUGWIRE_TEST_PID"
)

func init() {
	children["plugin"] = func() {
		if file := os.Getenv(pidEnv); file != "" {
			must(os.WriteFile(file, []byte(strconv.Itoa(os.Getpid())), 0o600))
		}
		if behaviours[os.Getenv(behaveEnv)] == nil {
			panic("no such behaviour: " + os.Getenv(behaveEnv))
		}
		behaviours[os.Getenv(behaveEnv)]()
	}
	children["holdpipes"] = func() { // a grandchild that keeps stdout open until the file is gone
		for file := os.Getenv(pidEnv); ; time.Sleep(5 * time.Millisecond) {
			if _, err := os.Stat(file); err != nil {
				return
			}
		}
	}
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// forever blocks in a way that the runtime does not take for a deadlock.
func forever() {
	for {
		time.Sleep(time.Hour)
	}
}

// behaviours are the plugins, good and bad.
var behaviours = map[string]func(){
	"good": func() { must(ServePlugin(testPluginMux(), nil)) },
	"noise": func() {
		os.Stdout.WriteString(strings.Repeat("noise | and | more\n", 1000) + "50%")
		os.Stderr.WriteString(strings.Repeat("x", 1<<20) + "\nstarting\n")
		must(ServePlugin(testPluginMux(), nil))
	},
	"versions 3 4":  func() { must(ServePlugin(testPluginMux(), &Config{Versions: []int{3, 4}})) },
	"other program": func() { must(ServePlugin(testPluginMux(), &Config{Launch: LaunchConfig{MagicCookie: "theirs"}})) },
	"custom": func() {
		must(ServePlugin(testPluginMux(), &Config{Custom: map[string]Transport{"my-tcp": renamedTCP{}}}))
	},
	"broken first": func() {
		must(ServePlugin(testPluginMux(), &Config{Custom: map[string]Transport{localTransport: brokenTransport{}}}))
	},
	"only tcp":  func() { must(ServePlugin(testPluginMux(), &Config{Transports: []string{"tcp"}})) },
	"impatient": func() { must(ServePlugin(testPluginMux(), &Config{Launch: LaunchConfig{StartTimeout: 1}})) },
	"holds pipes": func() {
		cmd := childCommand("holdpipes")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		must(cmd.Start())
		must(ServePlugin(testPluginMux(), nil))
	},
	"lingers": func() { // until SIGTERM
		must(ServePlugin(testPluginMux(), nil))
		forever()
	},
	"stubborn": func() { // until killed
		must(ServePlugin(testPluginMux(), nil))
		signal.Ignore(syscall.SIGTERM)
		fmt.Fprintln(os.Stderr, "I stay")
		forever()
	},
	"silent": func() {
		fmt.Fprintln(os.Stderr, "thinking")
		forever()
	},
	"exits 3": func() {
		fmt.Fprintln(os.Stderr, "reading config.yaml\n\x1b[31mno such file")
		os.Exit(3)
	},
	"crashes":   func() { panic("boom") },
	"exits 0":   func() { fmt.Println("usage: greeter [flags]") },
	"go-plugin": func() { fmt.Println("1|3|unix|/tmp/plugin3141|grpc|"); forever() },
	"go-plugin by hand": func() {
		fmt.Fprintln(os.Stderr, "This binary is a plugin. These are not meant to be executed directly.")
		os.Exit(1)
	},
	"dead address": func() { fmt.Println("1|0|tcp|127.0.0.1:1|plugwire|" + noPin); forever() },
	"no pin":       func() { fmt.Println("1|0|tcp|127.0.0.1:1|plugwire|"); forever() },
	"foreign net":  func() { fmt.Println("1|0|carrier-pigeon|coop 7|plugwire|"); forever() },
	"version 9":    func() { fmt.Println("1|9|tcp|127.0.0.1:1|plugwire|"); forever() },
}

// noPin is the pin of no key.
const noPin = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="

// testPluginMux is what good plugins serve.
func testPluginMux() *Mux {
	mux := NewMux()
	mux.HandleFunc("greet", func(ctx context.Context, name []byte) ([]byte, error) {
		return append([]byte("hello, "), name...), nil
	})
	mux.HandleFunc("env", func(ctx context.Context, name []byte) ([]byte, error) {
		return []byte(os.Getenv(string(name))), nil
	})
	mux.HandleFunc("hang", func(ctx context.Context, _ []byte) ([]byte, error) {
		fmt.Fprintln(os.Stderr, "hanging")
		<-ctx.Done()
		return nil, ctx.Err()
	})
	mux.HandleFunc("print", func(ctx context.Context, _ []byte) ([]byte, error) {
		line := bytes.Repeat([]byte("log "), 100<<10)
		os.Stdout.Write(line)
		os.Stderr.Write(line)
		return nil, nil
	})
	mux.HandleFunc("exit", func(ctx context.Context, status []byte) ([]byte, error) {
		n, _ := strconv.Atoi(string(status))
		fmt.Fprintln(os.Stderr, "exiting on request")
		os.Exit(n)
		return nil, nil
	})
	return mux
}

// launchTest is a plugin to launch; when the test ends, nothing of it may be left.
type launchTest struct {
	*testing.T
	cmd *exec.Cmd
	cfg *Config
	pid string // the file with its process id

	grandchild bool // of the one launched: somebody else reaps it
}

func newLaunchTest(t *testing.T, behaviour string) *launchTest {
	t.Helper()
	leavesNoDescriptors(t)
	return newParallelLaunchTest(t, behaviour)
}

// leavesNoDescriptors fails the test if there are more in the end. A test whose
// subtests launch in parallel has it look at them together.
func leavesNoDescriptors(t *testing.T) {
	before := openDescriptors()
	t.Cleanup(func() {
		if now := openDescriptors(); now > before {
			t.Errorf("%d descriptors, %d before", now, before)
		}
	})
}

// waitingLaunches are tests that wait most of the time, for a time-out after a
// launch, by name. They run beside one another. Test files add theirs in init.
var waitingLaunches = map[string]func(*testing.T){}

func TestWaitingLaunches(t *testing.T) {
	leavesNoDescriptors(t)
	for name, test := range waitingLaunches {
		t.Run(name, func(t *testing.T) { t.Parallel(); test(t) })
	}
}

func newParallelLaunchTest(t *testing.T, behaviour string) *launchTest {
	t.Helper()
	dir, err := os.MkdirTemp("", "pw")
	if err != nil {
		t.Fatal(err)
	}
	lt := &launchTest{T: t, cmd: exec.Command(os.Args[0]), cfg: new(Config), pid: dir + ".pid"}
	lt.cmd.Env = append(os.Environ(), childEnv+"=plugin", behaveEnv+"="+behaviour, pidEnv+"="+lt.pid,
		"GORACE=atexit_sleep_ms=0") // the race detector's second at every exit is not for plugins
	lt.cfg.Unix.Dir = dir
	lt.cfg.Launch.NoAutoMTLS = !builtWithTLS // or there would be no TCP
	t.Cleanup(func() {
		defer os.Remove(lt.pid)
		if err := os.Remove(dir); err != nil {
			t.Errorf("left behind: %v", err)
			os.RemoveAll(dir)
		}
		if lt.grandchild {
			eventually(t, func() bool { return !lt.alive() })
		} else if lt.alive() {
			t.Error("the process was left behind")
		}
	})
	return lt
}

// alive reports whether the last process started still exists, as a zombie also does.
func (t *launchTest) alive() bool {
	text, err := os.ReadFile(t.pid)
	if err != nil {
		return false // never started
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		t.Fatal(err)
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return false
	}
	defer p.Release()
	if t.grandchild { // a zombie that init will reap is gone
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if _, state, ok := strings.Cut(string(stat), ") "); err == nil && ok && state[0] == 'Z' {
			return false
		}
	}
	var none sysSignal
	return p.Signal(none) == nil
}

func (t *launchTest) launch() *Plugin {
	t.Helper()
	p, err := Launch(t.Context(), t.cmd, t.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// greets calls the plugin.
func (t *launchTest) greets(p *Plugin) {
	t.Helper()
	reply, err := p.Call(context.Background(), "greet", []byte("world"))
	if err != nil || string(reply) != "hello, world" {
		t.Fatalf("%q, %v", reply, err)
	}
}

func TestLaunchOverEachTransport(t *testing.T) {
	for _, scheme := range Transports() {
		t.Run(scheme, func(t *testing.T) {
			lt := newLaunchTest(t, "good")
			lt.cfg.Transports = []string{scheme}
			p := lt.launch()
			lt.greets(p)
			call := &Call{Method: "greet", Request: []byte("you")}
			if err := p.Do(t.Context(), call); err != nil || string(call.Reply) != "hello, you" {
				t.Fatalf("%q, %v", call.Reply, err)
			}
			batch := []*Call{{Method: "greet"}, {Method: "greet"}}
			if err := p.DoAll(t.Context(), batch); err != nil || string(batch[1].Reply) != "hello, " {
				t.Fatalf("%q, %v", batch[1].Reply, err)
			}
			if err := p.Notify(t.Context(), "greet", nil); err != nil {
				t.Fatal(err)
			}
			if s := p.Selection(); s.Chosen != scheme || len(s.Candidates) != 1 || !strings.Contains(s.String(), "Config.Transports") {
				t.Fatalf("%+v", s)
			}
			if text, _ := os.ReadFile(lt.pid); string(text) != strconv.Itoa(p.Pid()) {
				t.Fatalf("Pid is %d, but %s", p.Pid(), text)
			}
			if value, err := p.Call(t.Context(), "env", []byte(launchVar)); err != nil || len(value) > 0 {
				t.Fatalf("the plugin still has %s=%q, %v", launchVar, value, err)
			}
			for range 2 {
				if err := p.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Wait(); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Call(t.Context(), "greet", nil); err == nil {
				t.Fatal("a call after Close succeeded")
			}
		})
	}
}

func TestLaunchTakesTheCommandAsATemplate(t *testing.T) {
	lt := newLaunchTest(t, "good")
	var stderr bytes.Buffer
	lt.cmd.Stderr = &stderr
	for range 2 {
		p := lt.launch()
		lt.greets(p)
		if err := p.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if lt.cmd.Process != nil || lt.cmd.Stdout != nil || lt.cmd.Stdin != nil {
		t.Fatal("the template was changed")
	}
}

func TestLaunchToleratesOutputBeforeTheLine(t *testing.T) {
	lt := newLaunchTest(t, "noise")
	var stderr bytes.Buffer
	lt.cmd.Stderr = &stderr
	p := lt.launch()
	lt.greets(p)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if want := strings.Repeat("x", 1<<20) + "\nstarting\n"; stderr.String() != want {
		t.Fatalf("Stderr got %d bytes, want %d", stderr.Len(), len(want))
	}
}

func TestLaunchReadsOutputForLife(t *testing.T) {
	lt := newLaunchTest(t, "good")
	p := lt.launch()
	for range 3 {
		if _, err := p.Call(t.Context(), "print", nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if n := cap(p.cur.Load().proc.stderr.tail); n > 4*stderrTail {
		t.Fatalf("a tail of %d bytes", n)
	}
}

func TestLaunchNegotiatesTheApplicationsVersion(t *testing.T) {
	lt := newLaunchTest(t, "versions 3 4")
	lt.cfg.Versions = []int{4, 2, 3}
	p := lt.launch()
	lt.greets(p)
	if v := p.Conn().Version(); v != 4 {
		t.Fatalf("version %d", v)
	}
}

// writerFunc is a template's Stderr.
type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestLaunchedPluginOutlivesTheContextOfItsStart(t *testing.T) {
	lt := newLaunchTest(t, "good")
	ctx, cancel := context.WithCancel(t.Context())
	p, err := Launch(ctx, lt.cmd, lt.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	cancel()
	lt.greets(p)
}

// hang starts calls that never end, and returns when they run, with the channel
// of their errors.
func (t *launchTest) hang(n int) (*Plugin, <-chan error) {
	t.Helper()
	hanging := make(chan struct{}, n)
	t.cmd.Stderr = writerFunc(func(p []byte) (int, error) {
		for range bytes.Count(p, []byte("hanging\n")) {
			hanging <- struct{}{}
		}
		return len(p), nil
	})
	p := t.launch()
	errs := make(chan error, n)
	for range n {
		go func() {
			_, err := p.Call(context.Background(), "hang", nil)
			errs <- err
		}()
	}
	for range n {
		<-hanging
	}
	return p, errs
}

func TestKilledPluginEndsItsCalls(t *testing.T) {
	lt := newLaunchTest(t, "good")
	p, errs := lt.hang(3)
	process, err := os.FindProcess(p.Pid())
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Kill(); err != nil {
		t.Fatal(err)
	}
	process.Release()
	for range 3 {
		if err := <-errs; CodeOf(err) != Unavailable || NotRun(err) {
			t.Errorf("a call in flight ended with %v", err)
		}
	}
	// The host removes what is left, also when nobody calls Close.
	err = p.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !strings.Contains(err.Error(), `its stderr ends "hanging"`) {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(lt.cfg.Unix.Dir); len(entries) > 0 {
		t.Fatalf("left behind: %v", entries)
	}
	if again := p.Close(); again != err {
		t.Fatalf("%v, then %v", err, again)
	}
	if _, err := p.Call(t.Context(), "greet", nil); err == nil {
		t.Fatal("a call to a plugin that is gone succeeded")
	}
}

func TestPluginThatExitsByItself(t *testing.T) {
	for status, says := range map[string]string{"0": "", "7": "exit status 7"} {
		lt := newLaunchTest(t, "good")
		p := lt.launch()
		if _, err := p.Call(t.Context(), "exit", []byte(status)); CodeOf(err) != Unavailable {
			t.Fatal(err)
		}
		if err := p.Wait(); says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Fatal(err)
		}
	}
}

func TestClosedPluginEndsItsCallsAndIsQuick(t *testing.T) {
	lt := newLaunchTest(t, "good")
	p, errs := lt.hang(3)
	start := time.Now()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("Close took %v", took)
	}
	for range 3 {
		if err := <-errs; err == nil || NotRun(err) {
			t.Errorf("a call in flight ended with %v", err)
		}
	}
}

func TestPluginThatDoesNotExit(t *testing.T) {
	leavesNoDescriptors(t)
	for behaviour, want := range map[string]struct {
		exitTimeout time.Duration
		says        []string
	}{
		// Half of it passes before SIGTERM, and half is there to obey it.
		"lingers":  {time.Second, []string{"terminated"}},
		"stubborn": {200 * time.Millisecond, []string{"had to be killed", "within 200ms", "ExitTimeout", `"I stay"`}},
	} {
		t.Run(behaviour, func(t *testing.T) {
			if behaviour == "lingers" && runtime.GOOS == "windows" {
				t.Skip("TestCtrlBreakAsksThePluginToEnd is about that here")
			}
			t.Parallel()
			lt := newParallelLaunchTest(t, behaviour)
			lt.cfg.Launch.ExitTimeout = want.exitTimeout
			err := lt.launch().Close()
			for _, s := range want.says {
				if err == nil || !strings.Contains(err.Error(), s) {
					t.Errorf("%v does not say %s", err, s)
				}
			}
		})
	}
}

func TestGrandchildThatHoldsThePipesDoesNotHoldUpClose(t *testing.T) {
	lt := newLaunchTest(t, "holds pipes")
	p := lt.launch()
	lt.greets(p)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if lt.alive() {
		t.Error("the plugin is still there")
	}
	os.Remove(lt.pid) // the grandchild ends
}

func TestPluginThatGetsSIGTERMEndsInOrder(t *testing.T) {
	lt := newLaunchTest(t, "good")
	p := lt.launch()
	process, err := os.FindProcess(p.Pid())
	if err != nil {
		t.Fatal(err)
	}
	defer process.Release()
	if err := process.Signal(syscall.SIGTERM); err != nil {
		t.Skip("no signals here: ", err)
	}
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
}
