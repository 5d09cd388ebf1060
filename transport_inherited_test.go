package plugwire

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plugwire/plugwire/internal/sockio"
)

func init() {
	// A program that is a plugin when it is launched, and a filter otherwise.
	behaviours["filter"] = func() {
		cfg := &Config{Launch: LaunchConfig{StartTimeout: 50 * time.Millisecond}}
		if err := ServePlugin(testPluginMux(), cfg); err != ErrNotPlugin {
			must(err)
			return
		}
		if err := ServePlugin(testPluginMux(), cfg); err != ErrNotPlugin {
			panic("a second answer")
		}
		cmd := exec.Command("cat") // whatever the number 0 is
		cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
		must(cmd.Run())
	}
	behaviours["echo"] = func() { must(ServePlugin(echoMux(nil), nil)) }
}

// far has the command run without the host's environment, behind a shell that
// greets first, as ssh does to another machine.
func (t *launchTest) far() {
	t.Helper()
	env, err := exec.LookPath("env")
	if runtime.GOOS == "windows" || err != nil {
		t.Skip("needs a shell and env")
	}
	var kept []string
	for _, v := range t.cmd.Env {
		if strings.HasPrefix(v, "PLUGWIRE_TEST_") || strings.HasPrefix(v, "GORACE=") || strings.HasPrefix(v, "PATH=") {
			kept = append(kept, v)
		}
	}
	args := append([]string{"-c", `printf 'Welcome to far\n$ '; exec "$@"`, "far", env, "-i"}, kept...)
	t.cmd = exec.Command("sh", append(args, os.Args[0])...)
}

func TestStdio(t *testing.T) {
	for _, where := range []string{"near", "far"} {
		t.Run(where, func(t *testing.T) {
			lt := newLaunchTest(t, "good")
			lt.cfg.Transports = []string{"stdio"}
			var stderr bytes.Buffer
			if where == "far" {
				lt.far()
			}
			lt.cmd.Stderr = &stderr
			p := lt.launch()
			lt.greets(p)
			if _, err := p.Call(t.Context(), "print", nil); err != nil {
				t.Fatal(err)
			}
			if s := p.Selection(); s.Chosen != "stdio" || p.Conn().Peer().Verified || p.Conn().Peer().Transport != "stdio" {
				t.Fatalf("%+v, %v", s, p.Conn().Peer())
			}
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			if n := stderr.Len(); n != 2*400<<10 { // what it printed on stdout too
				t.Fatalf("stderr has %d bytes", n)
			}
		})
	}
}

// launchesAndEchoes has a crowd and large messages use a launched connection.
func launchesAndEchoes(t *testing.T, scheme string) {
	lt := newLaunchTest(t, "echo")
	lt.cfg.Transports = []string{scheme}
	p := lt.launch()
	parallelChecks(t, p, 2000)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			if err := checkCall(background, p, 1<<20, uint64(i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := p.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestStdioCarriesCrowdsAndLargeMessages(t *testing.T) { launchesAndEchoes(t, "stdio") }
func TestSocketpairCarriesCrowdsAndLargeMessages(t *testing.T) {
	needSocketpair(t)
	launchesAndEchoes(t, "socketpair")
}

func needSocketpair(t *testing.T) {
	t.Helper()
	if !haveSocketpair {
		t.Skip("no socketpair on " + runtime.GOOS)
	}
}

func TestStdioSaysWhatIsWrong(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		lt := newLaunchTest(t, "other program")
		lt.cfg.Transports = []string{"stdio"}
		_, err := Launch(t.Context(), lt.cmd, lt.cfg)
		checkLaunchError(t, err, FailedPrecondition, "belongs to another program", `"theirs"`)
	})
	t.Run("no plugin", func(t *testing.T) {
		if _, err := exec.LookPath("cat"); err != nil {
			t.Skip("needs cat")
		}
		lt := newLaunchTest(t, "")
		lt.cfg.Transports = []string{"stdio"}
		lt.cfg.Launch.StartTimeout = 100 * time.Millisecond
		_, err := Launch(t.Context(), exec.Command("cat"), lt.cfg)
		checkLaunchError(t, err, DeadlineExceeded, `it printed "PLUGWIRE_LAUNCH=1|`)
	})
	t.Run("beside others", func(t *testing.T) {
		lt := newLaunchTest(t, "good")
		lt.cfg.Transports = []string{"tcp", "stdio"}
		if s := lt.launch().Selection(); s.Chosen != "tcp" || !strings.Contains(s.Candidates[1].Reason, "must be the only transport") {
			t.Fatal(s)
		}
	})
}

func TestStdioPluginThatDiesEndsItsCalls(t *testing.T) {
	lt := newLaunchTest(t, "good")
	lt.cfg.Transports = []string{"stdio"}
	p, ends := lt.hang(8)
	proc, err := os.FindProcess(p.Pid())
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Release()
	if err := proc.Kill(); err != nil {
		t.Fatal(err)
	}
	for range 8 {
		if err := receive(t, "an end", ends); CodeOf(err) != Unavailable || NotRun(err) {
			t.Errorf("%v, not run: %v", err, NotRun(err))
		}
	}
	p.Wait()
}

// TestStdinOfWhatIsNotLaunchedIsLeftWhole: ServePlugin looks at stdin, and what
// is no host's order is there for the program, and for processes that it starts.
func TestStdinOfWhatIsNotLaunchedIsLeftWhole(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs cat")
	}
	for name, text := range map[string]string{
		"other":   "some text\nand more\n",
		"similar": launchVar + "\n" + launchVar + "=x\n",
		"nothing": "",
		"short":   launchVar,
		"endless": launchVar + "=" + strings.Repeat("x", 3*maxLaunchLine),
	} {
		t.Run(name, func(t *testing.T) {
			lt := newLaunchTest(t, "filter")
			lt.cmd.Stderr = os.Stderr
			stdin, stdout := lt.startByHand("")
			go func() {
				io.WriteString(stdin, text)
				stdin.Close()
			}()
			got, err := io.ReadAll(stdout)
			if err != nil || string(got) != text {
				t.Errorf("%q, %v", got, err)
			}
			if err := lt.cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("late", func(t *testing.T) {
		lt := newLaunchTest(t, "late filter")
		lt.cmd.Stderr = os.Stderr
		stdin, stdout := lt.startByHand("")
		io.WriteString(stdin, "PLUG")
		if _, err := io.ReadFull(stdout, make([]byte, 1)); err != nil { // it waits no more
			t.Fatal(err)
		}
		io.WriteString(stdin, " and play")
		stdin.Close()
		if got, err := io.ReadAll(stdout); err != nil || string(got) != "PLUG and play" {
			t.Errorf("%q, %v", got, err)
		}
		if err := lt.cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// TestStdinIsNotWaitedForWhereItCannotBeMeant: neither does it hold up a program
// that allows other transports only.
func TestStdinIsNotWaitedForWhereItCannotBeMeant(t *testing.T) {
	for _, test := range []struct {
		transports []string
		wait       time.Duration
	}{
		{nil, time.Second},
		{[]string{"unix"}, 0},
		{[]string{"stdio"}, defaultStartTimeout},
	} {
		s := &pluginServer{cfg: (&Config{Transports: test.transports}).withDefaults()}
		if d := s.stdinWait(); d != test.wait {
			t.Errorf("%q: %v", test.transports, d)
		}
	}
	lt := newLaunchTest(t, "only tcp")
	stdin, stdout := lt.startByHand("")
	if _, err := io.Copy(io.Discard, stdout); err != nil { // it ends though stdin is open and silent
		t.Error(err)
	}
	if err := lt.cmd.Wait(); err == nil {
		t.Error("a plugin that nobody launched is content")
	}
	stdin.Close()
}

func init() {
	behaviours["late filter"] = func() {
		if err := ServePlugin(testPluginMux(), &Config{Launch: LaunchConfig{StartTimeout: time.Millisecond}}); err != ErrNotPlugin {
			panic(err)
		}
		os.Stdout.WriteString(".")
		_, err := io.Copy(os.Stdout, os.Stdin)
		must(err)
	}
}

func TestSocketpair(t *testing.T) {
	needSocketpair(t)
	plainOnly(t)
	lt := newLaunchTest(t, "good")
	lt.cfg.Transports = []string{"socketpair", "unix"}
	lt.cfg.Unix.Dir += "/missing" // no name in any file system
	p := lt.launch()
	lt.greets(p)
	if s := p.Selection(); s.Chosen != "socketpair" {
		t.Fatal(s)
	}
	if p.Conn().raw == nil && sockio.Available {
		t.Error("not on the fast path")
	}
}

// TestSocketpairThatIsNotPassedOn: the next transport is used.
func TestSocketpairThatIsNotPassedOn(t *testing.T) {
	needSocketpair(t)
	lt := newLaunchTest(t, "good")
	lt.cfg.Transports = []string{"socketpair", "tcp"}
	lt.cmd = exec.Command("sh", "-c", `exec "$@" 3>&-`, "closes", os.Args[0])
	lt.cmd.Env = newLaunchTest(t, "good").cmd.Env
	lt.cmd.Env = append(lt.cmd.Env, pidEnv+"="+lt.pid)
	p := lt.launch()
	lt.greets(p)
	if s := p.Selection(); s.Chosen != "tcp" || !strings.Contains(s.Candidates[0].Reason, "does not pass on the descriptor") {
		t.Fatal(s)
	}
}

// TestSocketpairNeedsTheSecret: the kernel cannot say who has the other end.
func TestSocketpairNeedsTheSecret(t *testing.T) {
	needSocketpair(t)
	lt := newLaunchTest(t, "good")
	lt.cfg.Transports = []string{"socketpair"}
	env := lt.cmd.Env
	lt.cmd = exec.Command("sh", "-c", `exec "$@" </dev/null`, "closes", os.Args[0])
	lt.cmd.Env = env
	_, err := Launch(t.Context(), lt.cmd, lt.cfg)
	checkLaunchError(t, err, PermissionDenied, "did not get the one-time secret")
}
