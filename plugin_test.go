package plugwire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
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
	"only tcp":      func() { must(ServePlugin(testPluginMux(), &Config{Transports: []string{"tcp"}})) },
	"impatient":     func() { must(ServePlugin(testPluginMux(), &Config{Launch: LaunchConfig{StartTimeout: 1}})) },
	"holds pipes": func() {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"=holdpipes")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		must(cmd.Start())
		must(ServePlugin(testPluginMux(), nil))
	},
	"lingers": func() { // until SIGTERM
		must(ServePlugin(testPluginMux(), nil))
		select {}
	},
	"stubborn": func() { // until killed
		must(ServePlugin(testPluginMux(), nil))
		signal.Ignore(syscall.SIGTERM)
		fmt.Fprintln(os.Stderr, "I stay")
		select {}
	},
	"silent": func() {
		fmt.Fprintln(os.Stderr, "thinking")
		select {}
	},
	"exits 3": func() {
		fmt.Fprintln(os.Stderr, "reading config.yaml\n\x1b[31mno such file")
		os.Exit(3)
	},
	"exits 0":   func() { fmt.Println("usage: greeter [flags]") },
	"go-plugin": func() { fmt.Println("1|3|unix|/tmp/plugin3141|grpc|"); select {} },
	"go-plugin by hand": func() {
		fmt.Fprintln(os.Stderr, "This binary is a plugin. These are not meant to be executed directly.")
		os.Exit(1)
	},
	"dead address": func() { fmt.Println("1|0|tcp|127.0.0.1:1|plugwire|"); select {} },
	"foreign net":  func() { fmt.Println("1|0|carrier-pigeon|coop 7|plugwire|"); select {} },
	"version 9":    func() { fmt.Println("1|9|tcp|127.0.0.1:1|plugwire|"); select {} },
}

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
}

func newLaunchTest(t *testing.T, behaviour string) *launchTest {
	t.Helper()
	dir, err := os.MkdirTemp("", "pw")
	if err != nil {
		t.Fatal(err)
	}
	// The poller opens descriptors of its own at its first use.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	w.Close()
	lt := &launchTest{T: t, cmd: exec.Command(os.Args[0]), cfg: new(Config), pid: filepath.Join(t.TempDir(), "pid")}
	lt.cmd.Env = append(os.Environ(), childEnv+"=plugin", behaveEnv+"="+behaviour, pidEnv+"="+lt.pid,
		"GORACE=atexit_sleep_ms=0") // the race detector's second at every exit is not for plugins
	lt.cfg.Unix.Dir = dir
	descriptors := openDescriptors()
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Errorf("left behind: %v", err)
			os.RemoveAll(dir)
		}
		if lt.alive() {
			t.Error("the process was left behind")
		}
		if now := openDescriptors(); now > descriptors {
			t.Errorf("%d descriptors, %d before", now, descriptors)
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
	return p.Signal(syscall.Signal(0)) == nil
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

func TestLaunchRefusesACommandThatIsNoTemplate(t *testing.T) {
	started := exec.Command("x")
	started.Process = new(os.Process)
	withStdin, withStdout := exec.Command("x"), exec.Command("x")
	withStdin.Stdin, withStdout.Stdout = os.Stdin, os.Stderr
	for says, cmd := range map[string]*exec.Cmd{
		"nil":             nil,
		"already started": started,
		"has Stdin set":   withStdin,
		"has Stdout set":  withStdout,
		"CommandContext":  exec.CommandContext(t.Context(), "x"),
	} {
		_, err := Launch(t.Context(), cmd, nil)
		if CodeOf(err) != InvalidArgument || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
}

// TestLaunchThatFails: each error has its code and says all of this.
func TestLaunchThatFails(t *testing.T) {
	for _, test := range []struct {
		behaviour string
		code      Code
		says      []string
	}{
		{"silent", DeadlineExceeded, []string{"waiting for its launch line: none within 400ms, it printed nothing on stdout",
			`its stderr ends "thinking"`, "plugwire.ServePlugin"}},
		{"exits 3", Unavailable, []string{"waiting for its launch line: it printed nothing on stdout", "exit status 3",
			`its stderr ends "reading config.yaml", "\x1b[31mno such file"`}},
		{"exits 0", Unavailable, []string{`it printed "usage: greeter [flags]\n" on stdout`, "it exited with status 0", "is it a plugin?"}},
		{"go-plugin", FailedPrecondition, []string{"waiting for its launch line", `hashicorp/go-plugin`, `protocol "grpc"`}},
		{"go-plugin by hand", Unavailable, []string{"hashicorp/go-plugin", "exit status 1"}},
		{"dead address", Unavailable, []string{"connecting: ", "tcp://127.0.0.1:1", "connection refused"}},
		{"foreign net", FailedPrecondition, []string{`the plugin serves on "carrier-pigeon", this host allows`}},
		{"other program", FailedPrecondition, []string{"belongs to another program", `"theirs"`, `"plugwire"`, "exit status 1"}},
		{"versions 3 4", FailedPrecondition, []string{"no common version", "the plugin speaks [3 4]", "its host [1 2]", "exit status 1"}},
		{"version 9", FailedPrecondition, []string{"the plugin speaks version 9", "this host [1 2]"}},
	} {
		t.Run(test.behaviour, func(t *testing.T) {
			lt := newLaunchTest(t, test.behaviour)
			lt.cfg.Versions = []int{1, 2}
			if test.behaviour == "silent" {
				lt.cfg.Launch.StartTimeout = 400 * time.Millisecond
			}
			p, err := Launch(t.Context(), lt.cmd, lt.cfg)
			if err == nil {
				p.Close()
				t.Fatal("it was launched")
			}
			checkLaunchError(t, err, test.code, append(test.says, "plugwire: launch "+os.Args[0]+": ")...)
		})
	}
}

func checkLaunchError(t *testing.T, err error, code Code, says ...string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Op != "launch" || e.Code != code {
		t.Fatalf("%+v", err)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%v\ndoes not say %s", err, s)
		}
	}
	if strings.ContainsAny(err.Error(), "\x1b\n") {
		t.Errorf("%q is not safe to print", err)
	}
	t.Log(err)
}

func TestLaunchOfWhatIsNoProgram(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("just text"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		path string
		code Code
		is   error
	}{
		{filepath.Join(dir, "missing"), NotFound, os.ErrNotExist},
		{"plugwire-no-such-command", NotFound, exec.ErrNotFound},
		{text, PermissionDenied, os.ErrPermission},
	} {
		t.Run(filepath.Base(test.path), func(t *testing.T) {
			lt := newLaunchTest(t, "")
			_, err := Launch(t.Context(), exec.Command(test.path), lt.cfg)
			checkLaunchError(t, err, test.code, "starting the process", test.path)
			if !errors.Is(err, test.is) {
				t.Errorf("%v is not %v", err, test.is)
			}
		})
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
	if n := cap(p.proc.stderr.tail); n > 4*stderrTail {
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

func TestLaunchTakesTheNextTransport(t *testing.T) {
	if len(Transports()) < 2 {
		t.Skip("this platform has one transport")
	}
	t.Run("when the plugin does not want the first", func(t *testing.T) {
		lt := newLaunchTest(t, "only tcp")
		s := lt.launch().Selection()
		if s.Chosen != "tcp" || !strings.Contains(s.Candidates[0].Reason, `allows ["tcp"] only`) {
			t.Fatal(s)
		}
		t.Log("\n" + s.String())
	})
	t.Run("when the plugin cannot bind the first", func(t *testing.T) {
		lt := newLaunchTest(t, "good")
		long := filepath.Join(lt.cfg.Unix.Dir, strings.Repeat("x", 120))
		if err := os.Mkdir(long, 0o700); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(long)
		lt.cfg.Unix.Dir = long
		p := lt.launch()
		if s := p.Selection(); s.Chosen != "tcp" || !strings.Contains(s.Candidates[0].Reason, "the plugin could not: ") {
			t.Fatal(s)
		}
		p.Close()
	})
	t.Run("when the host has no directory", func(t *testing.T) {
		lt := newLaunchTest(t, "good")
		lt.cfg.Unix.Dir += "/missing"
		lt.cfg.Transports = []string{"unix", "tcp", "warp"}
		s := lt.launch().Selection()
		if s.Chosen != "tcp" || !strings.Contains(s.Candidates[0].Reason, "no directory for the socket") ||
			!strings.Contains(s.Candidates[2].Reason, "no such transport") {
			t.Fatal(s)
		}
		t.Log("\n" + s.String())
	})
	t.Run("and fails when there is none", func(t *testing.T) {
		lt := newLaunchTest(t, "only tcp")
		lt.cfg.Transports = []string{"unix"}
		_, err := Launch(t.Context(), lt.cmd, lt.cfg)
		checkLaunchError(t, err, Unavailable, `none of the transports that the host allows can be had: ["unix"]`)
	})
}

// writerFunc is a template's Stderr.
type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestLaunchEndsWithItsContext(t *testing.T) {
	lt := newLaunchTest(t, "silent")
	ctx, cancel := context.WithCancel(t.Context())
	lt.cmd.Stderr = writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil })
	_, err := Launch(ctx, lt.cmd, lt.cfg)
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	checkLaunchError(t, err, Canceled, "waiting for its launch line", `its stderr ends "thinking"`)
	_, err = Launch(ctx, lt.cmd, lt.cfg)
	checkLaunchError(t, err, Canceled, "preparing")
}

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
	for behaviour, says := range map[string][]string{
		"lingers":  {"terminated"},
		"stubborn": {"had to be killed", "within 200ms", "ExitTimeout", `"I stay"`},
	} {
		t.Run(behaviour, func(t *testing.T) {
			lt := newLaunchTest(t, behaviour)
			lt.cfg.Launch.ExitTimeout = 200 * time.Millisecond
			err := lt.launch().Close()
			for _, s := range says {
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
	lt.alive()
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

// startByHand starts the plugin without Launch, with the environment variable
// set to order, and returns its stdout and its stdin.
func (t *launchTest) startByHand(order string) (stdin io.WriteCloser, stdout io.Reader) {
	t.Helper()
	if order != "" {
		t.cmd.Env = append(t.cmd.Env, launchVar+"="+order)
	}
	stdin, err := t.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err = t.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := t.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return stdin, stdout
}

func TestPluginStartedByHandSaysWhatItIs(t *testing.T) {
	lt := newLaunchTest(t, "good")
	output, err := lt.cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(output), ErrNotPlugin.Error()) {
		t.Fatalf("%v: %s", err, output)
	}
}

func TestPluginWhoseHostNeverConnects(t *testing.T) {
	order := &launchOrder{cookie: defaultMagicCookie, transports: []string{"tcp"}, stdin: true}
	for _, test := range []struct {
		behaviour string
		says      string
	}{
		{"good", "the host ended before it connected"}, // its stdin ends
		{"impatient", "the host did not connect within 1ns"},
	} {
		t.Run(test.behaviour, func(t *testing.T) {
			lt := newLaunchTest(t, test.behaviour)
			var stderr bytes.Buffer
			lt.cmd.Stderr = &stderr
			stdin, stdout := lt.startByHand(order.String())
			if test.behaviour == "good" {
				buf := make([]byte, 1)
				if _, err := io.ReadFull(stdout, buf); err != nil { // it serves
					t.Error(err)
				}
				stdin.Close()
			}
			io.Copy(io.Discard, stdout)
			if err := lt.cmd.Wait(); err == nil || !strings.Contains(stderr.String(), test.says) {
				t.Fatalf("%v: %s", err, stderr.String())
			}
		})
	}
}
