package plugwire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// These tests are about starts that fail, or succeed only at the second choice.
// The plugins are in plugin_test.go.

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
	leavesNoDescriptors(t)
	for _, test := range []struct {
		behaviour string
		code      Code
		says      []string
	}{
		{"silent", DeadlineExceeded, []string{"waiting for its launch line: none within 100ms, it printed nothing on stdout",
			"plugwire.ServePlugin"}},
		{"exits 3", Unavailable, []string{"waiting for its launch line: it printed nothing on stdout", "exit status 3",
			`its stderr ends "reading config.yaml", "\x1b[31mno such file"`}},
		{"crashes", Unavailable, []string{"it printed nothing on stdout", "exit status 2", `its stderr ends "panic: boom", "goroutine 1`}},
		{"exits 0", Unavailable, []string{`it printed "usage: greeter [flags]\n" on stdout`, "it exited with status 0", "is it a plugin?"}},
		{"go-plugin", FailedPrecondition, []string{"waiting for its launch line", `hashicorp/go-plugin`, `protocol "grpc"`}},
		{"go-plugin by hand", Unavailable, []string{"hashicorp/go-plugin", "exit status 1"}},
		{"dead address", Unavailable, []string{"connecting: ", "tcp://127.0.0.1:1", "is the server running"}},
		{"no pin", FailedPrecondition, []string{"takes no part in automatic mutual TLS", "NoAutoMTLS"}},
		{"foreign net", FailedPrecondition, []string{`the plugin serves on "carrier-pigeon", this host allows`}},
		{"other program", FailedPrecondition, []string{"belongs to another program", `"theirs"`, `"plugwire"`, "exit status 1"}},
		{"versions 3 4", FailedPrecondition, []string{"no common version", "the plugin speaks [3 4]", "its host [1 2]", "exit status 1"}},
		{"version 9", FailedPrecondition, []string{"the plugin speaks version 9", "this host [1 2]"}},
	} {
		t.Run(test.behaviour, func(t *testing.T) {
			t.Parallel()
			lt := newParallelLaunchTest(t, test.behaviour)
			lt.cfg.Versions = []int{1, 2}
			if test.behaviour == "no pin" && !builtWithTLS {
				t.Skip("this build needs none")
			}
			if test.behaviour == "silent" {
				lt.cfg.Launch.StartTimeout = 100 * time.Millisecond
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
		if runtime.GOOS == "windows" { // where programs have names of their own
			test.code, test.is = NotFound, exec.ErrNotFound
		}
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

// renamedTCP is a custom transport.
type renamedTCP struct{}

func (renamedTCP) Listen(ctx context.Context, addr string, cfg *Config) (net.Listener, error) {
	return new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
}

func (renamedTCP) Dial(ctx context.Context, addr string, cfg *Config) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", strings.TrimPrefix(addr, "my-tcp:"))
}

func TestLaunchOverACustomTransport(t *testing.T) {
	lt := newLaunchTest(t, "custom")
	lt.cfg.Custom = map[string]Transport{"my-tcp": renamedTCP{}}
	lt.cfg.Transports = []string{"my-tcp"}
	p := lt.launch()
	lt.greets(p)
	if s := p.Selection(); s.Chosen != "my-tcp" {
		t.Fatal(s)
	}
}

type brokenTransport struct{ renamedTCP }

func (brokenTransport) Listen(context.Context, string, *Config) (net.Listener, error) {
	return nil, errors.New("broken")
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
		lt := newLaunchTest(t, "broken first")
		p := lt.launch()
		if s := p.Selection(); s.Chosen != "tcp" || !strings.Contains(s.Candidates[0].Reason, "the plugin could not: ") || !strings.Contains(s.Candidates[0].Reason, "broken") {
			t.Fatal(s)
		}
		p.Close()
	})
	t.Run("when the host has no directory", func(t *testing.T) {
		if localTransport != "unix" {
			t.Skip("no transport needs one here")
		}
		lt := newLaunchTest(t, "good")
		lt.cfg.Unix.Dir += "/missing"
		lt.cfg.Transports = []string{"unix", "tcp", "warp", "systemd"}
		s := lt.launch().Selection()
		if s.Chosen != "tcp" || !strings.Contains(s.Candidates[0].Reason, "no directory for the socket") ||
			!strings.Contains(s.Candidates[2].Reason, "no such transport") || !strings.Contains(s.Candidates[3].Reason, "no such transport") {
			t.Fatal(s)
		}
		t.Log("\n" + s.String())
	})
	t.Run("and fails when there is none", func(t *testing.T) {
		lt := newLaunchTest(t, "only tcp")
		lt.cfg.Transports = []string{localTransport}
		_, err := Launch(t.Context(), lt.cmd, lt.cfg)
		checkLaunchError(t, err, Unavailable, `none of the transports that the host allows can be had: ["`+localTransport+`"]`)
	})
}

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
