//go:build unix && !plugwire_notls

package plugwire

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const impostorEnv = "PLUGWIRE_TEST_IMPOSTOR" // the launch line that an impostor prints

func init() {
	behaviours["impostor"] = func() { fmt.Println(os.Getenv(impostorEnv)); forever() }
	behaviours["parrot"] = func() { // repeats what it is told
		told := make([]byte, secretTextLen)
		if strings.Contains(os.Getenv(launchVar), "secret=stdin") {
			io.ReadFull(os.Stdin, told)
		}
		fmt.Fprintf(os.Stderr, "stdin: %s\nenvironment: %s\n", told, os.Environ())
		fmt.Printf("%s\n%s\n", told, os.Environ())
		os.Exit(1)
	}
}

// wrapped has a shell script start the plugin, as $0.
func (t *launchTest) wrapped(script string) {
	path := t.cmd.Path
	t.cmd.Path, t.cmd.Args = "/bin/sh", []string{"/bin/sh", "-c", script, path}
	t.grandchild = true
	if _, err := os.Stat(t.cmd.Path); err != nil {
		t.Skip("no shell here:", err)
	}
}

func TestT07PluginsBehindAWrapper(t *testing.T) {
	leavesNoDescriptors(t)
	const inBetween = `"$0"; exit $?` // the shell stays, and waits for the plugin
	for _, scheme := range Transports() {
		without := "did not get the one-time secret" // but over TCP there are the pinned keys
		if scheme == "tcp" {
			without = ""
		}
		for name, row := range map[string]struct {
			script string
			env    bool
			want   string // of the refusal, "" when it works
		}{
			"that passes its stdin":                   {inBetween, false, ""},
			"that does not":                           {`"$0" </dev/null; exit $?`, false, without},
			"that does not, secret in environment":    {`"$0" </dev/null; exit $?`, true, ""},
			"that it replaces":                        {`exec "$0"`, false, ""},
			"that it replaces, without stdin":         {`exec "$0" </dev/null`, false, ""},
			"whose stdin is a pipe of something else": {`(echo; cat) | "$0"; exit $?`, false, without},
			"that makes a session of its own":         {`command -v setsid >/dev/null || exec "$0"; setsid "$0"; exit $?`, false, ""},
		} {
			if strings.Contains(row.script, "setsid") && runtime.GOOS != "linux" {
				continue // nobody tells who descends from whom
			}
			t.Run(scheme+"/"+strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
				t.Parallel()
				lt := newParallelLaunchTest(t, "good")
				lt.wrapped(row.script)
				lt.cfg.Transports = []string{scheme}
				lt.cfg.Launch.SecretInEnv = row.env
				if row.want == "" {
					p := lt.launch()
					lt.greets(p)
					if err := p.Close(); err != nil {
						t.Error(err)
					}
					return
				}
				p, err := Launch(t.Context(), lt.cmd, lt.cfg)
				if err == nil {
					p.Close()
					t.Fatal("connected")
				}
				if CodeOf(err) != PermissionDenied || !strings.Contains(err.Error(), row.want) || !strings.Contains(err.Error(), "SecretInEnv") {
					t.Error(err)
				}
			})
		}
	}
}

// Another process of this user, here the test, finds the plugin's address.
func TestT07SiblingThatConnectsToAPlugin(t *testing.T) {
	for _, scheme := range Transports() {
		lt := newLaunchTest(t, "good")
		lt.cfg.Transports = []string{scheme}
		p := lt.launch()
		addr := addrURI(p.Conn().RemoteAddr())
		for what, key := range map[string]*secret{"no secret": nil, "another secret": newSecret()} {
			cfgs := []*Config{{secret: key}}
			if scheme == "tcp" {
				own, _, err := newAutoTLS("sibling")
				if err != nil {
					t.Fatal(err)
				}
				own.pin = p.Conn().cfg.TLS.pin // which it may well have seen
				cfgs = append(cfgs, &Config{secret: key, TLS: own})
			}
			for _, cfg := range cfgs {
				c, err := Dial(t.Context(), addr, cfg)
				if err == nil {
					_, err = c.Call(t.Context(), "greet", nil)
					c.Close()
				}
				if code := CodeOf(err); code != FailedPrecondition && code != Unauthenticated {
					t.Errorf("%s with %s, TLS %v: %v", scheme, what, cfg.hasTLS(), err)
				}
				t.Logf("%s with %s, TLS %v: %v", scheme, what, cfg.hasTLS(), err)
			}
		}
		lt.greets(p)
		p.Close()
	}
}

// A plugin to which its secret did not come serves the process that started it,
// here the test or else a shell, and nobody else.
func TestT07PluginWithoutItsSecretServesItsParentAlone(t *testing.T) {
	for script, want := range map[string]Code{
		`exec "$0" </dev/null`:     OK,
		`"$0" </dev/null; exit $?`: PermissionDenied,
	} {
		lt := newLaunchTest(t, "good")
		lt.wrapped(script)
		order := &launchOrder{cookie: defaultMagicCookie, transports: []string{"unix"}, dir: lt.cfg.Unix.Dir, stdin: true, secretStdin: true}
		lt.cmd.Env = append(lt.cmd.Env, launchVar+"="+order.String())
		ownGroup(lt.cmd)
		stdout, err := lt.cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := lt.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		text, err := bufio.NewReader(stdout).ReadString('\n')
		line, err2 := new(launchScanner).scan([]byte(text))
		if err != nil || err2 != nil || line == nil {
			t.Fatalf("%q: %v, %v", text, err, err2)
		}
		c, err := Dial(t.Context(), line.addrs()[0].uri(), nil)
		if err == nil {
			_, err = c.Call(t.Context(), "greet", nil)
			c.Close()
		}
		if CodeOf(err) != want || err != nil && !strings.Contains(err.Error(), "only the process that started it") {
			t.Errorf("%s: %v", script, err)
		}
		if want != OK { // else it ends by itself
			signalGroup(lt.cmd.Process, syscall.SIGTERM)
		}
		lt.cmd.Wait()
		eventually(t, func() bool { return !lt.alive() })
	}
}

// Another process of this user serves at the address that the plugin names.
func TestT07SiblingThatServesInThePluginsPlace(t *testing.T) {
	l := listenUnix(t, "unix:", nil)
	accepted := make(chan []byte, 10)
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			b, _ := io.ReadAll(nc)
			accepted <- b
			nc.Close()
		}
	}()
	for _, fields := range []string{"", "|secret=none"} {
		lt := newLaunchTest(t, "impostor")
		lt.cmd.Env = append(lt.cmd.Env, impostorEnv+"=1|0|unix|"+l.Addr().String()+"|plugwire|"+fields)
		_, err := Launch(t.Context(), lt.cmd, lt.cfg)
		if CodeOf(err) != PermissionDenied || !strings.Contains(fmt.Sprint(err), fmt.Sprintf("process %d serves there", os.Getpid())) {
			t.Errorf("%q: %v", fields, err)
		}
		if b := receive(t, "a connection", accepted); bytes.Contains(b, appendFrameHeader(nil, FrameHeader{Type: FrameHello})[4:8]) && len(b) > 200 {
			t.Errorf("the impostor was told %q", b)
		}
	}
}

var hexDigits = regexp.MustCompile("[0-9a-fA-F]{48}") // three quarters of a secret

func TestT24SecretsAppearNowhere(t *testing.T) {
	t.Run("in errors and logs", func(t *testing.T) {
		for _, env := range []bool{false, true} {
			lt := newLaunchTest(t, "parrot")
			lt.cfg.Launch.SecretInEnv = env
			var book logBook
			lt.cfg.Logger = book.logger()
			_, err := Launch(t.Context(), lt.cmd, lt.cfg)
			if err == nil || !strings.Contains(err.Error(), "[one-time secret]") && !env {
				t.Errorf("a parrot: %v", err)
			}
			if hexDigits.MatchString(fmt.Sprintf("%v %+v %#v", err, err, err)) {
				t.Errorf("the error has the secret: %v", err)
			}
			if log := strings.Join(book.lines(), "\n"); hexDigits.MatchString(log) || !strings.Contains(log, "[one-time secret]") {
				t.Errorf("the log has the secret: %s", log)
			}
		}
	})
	for _, env := range []bool{false, true} {
		for _, scheme := range Transports() {
			t.Run(fmt.Sprintf("of a plugin that runs/%s, in environment %v", scheme, env), func(t *testing.T) {
				var log bytes.Buffer
				lt := newLaunchTest(t, "good")
				lt.cfg.Transports = []string{scheme}
				lt.cfg.Launch.SecretInEnv = env
				lt.cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug - 10}))
				p := lt.launch()
				key := p.cur.Load().secret
				text := strings.TrimSpace(key.text())
				look := func(where, s string) {
					if strings.Contains(s, text) || strings.Contains(s, string(key[:])) {
						t.Errorf("%s has the secret", where)
					}
				}
				look("its formatting", fmt.Sprintf("%v %+v %#v %x %s %d", key, key, key, key, key, key))
				if !raceEnabled { // package fmt looks at what others write
					look("the plugin's formatting", fmt.Sprintf("%+v %#v", p, p.cfg))
					look("the connection's formatting", fmt.Sprintf("%+v", p.Conn().cfg))
				}
				for _, name := range []string{launchVar, "PATH"} {
					v, err := p.Call(t.Context(), "env", []byte(name))
					if err != nil || name == launchVar && len(v) > 0 {
						t.Errorf("%s: %q, %v", name, v, err)
					}
				}
				for _, file := range []string{"environ", "cmdline"} {
					b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.Pid(), file))
					if err != nil {
						t.Log("cannot look:", err)
					} else if file != "environ" || !env {
						look("/proc/pid/"+file, string(b))
					}
				}
				if _, err := Dial(t.Context(), addrURI(p.Conn().RemoteAddr()), &Config{secret: newSecret()}); err == nil {
					t.Error("another secret is let in")
				} else {
					look("the refusal", err.Error())
				}
				p.Close()
				look("the log", log.String())
				if out, ok := lt.cmd.Stderr.(*bytes.Buffer); ok {
					look("stderr", out.String())
				}
			})
		}
	}
}

// What goes over the wire is a proof, not the secret.
func TestT24SecretIsNotSent(t *testing.T) {
	key := newSecret()
	dialled, accepted := socketPair(t, "pipe")
	heard := &hearing{Conn: dialled}
	go func() {
		c, err := open(context.Background(), accepted, false, "", withSecret(key).withDefaults())
		if err == nil {
			<-c.Done()
		}
	}()
	c, err := NewConn(t.Context(), heard, withSecret(key))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	heard.mu.Lock()
	defer heard.mu.Unlock()
	if len(heard.said) == 0 || bytes.Contains(heard.said, key[:8]) || bytes.Contains(heard.said, []byte(key.text()[:16])) {
		t.Errorf("%d bytes were said: %q", len(heard.said), heard.said)
	}
}

// hearing keeps what is read and written.
type hearing struct {
	net.Conn
	mu   sync.Mutex
	said []byte
}

func (h *hearing) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	h.hear(b[:n])
	return n, err
}

func (h *hearing) Write(b []byte) (int, error) {
	h.hear(b)
	return h.Conn.Write(b)
}

func (h *hearing) hear(b []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.said = append(h.said, b...)
}

// A plugin's process group ends with it.
func TestKilledPluginsGroupIsKilled(t *testing.T) {
	lt := newLaunchTest(t, "stubborn")
	lt.wrapped(`trap '' TERM; exec 3<&0; "$0" <&3 & wait; wait; exit 1`)
	lt.cfg.Launch.ExitTimeout = 100 * time.Millisecond
	p := lt.launch()
	lt.greets(p)
	if err := p.Close(); CodeOf(err) != DeadlineExceeded {
		t.Error(err)
	}
	eventually(t, func() bool { return !lt.alive() })
}

func TestStdioIsEncryptedWhenAskedFor(t *testing.T) {
	plainOnly(t)
	lt := newLaunchTest(t, "good")
	lt.cfg.Transports, lt.cfg.Launch.AutoMTLS = []string{"stdio"}, true
	p := lt.launch()
	lt.greets(p)
	if p.Conn().sealer == nil {
		t.Fatal("in plain")
	}
}
