//go:build unix && !plugwire_notls

package plugwire

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func init() {
	children["trouble"] = func() { // prints why another user, if this one is root, cannot listen or dial
		if os.Geteuid() == 0 {
			becomeOther()
		}
		var err error
		if addr := os.Getenv(childAddrEnv); os.Getenv(childTroubleEnv) == "listen" {
			_, err = new(Server).Listen(addr)
		} else {
			_, err = Dial(context.Background(), addr, &Config{Unix: UnixConfig{ServerUIDs: []int{0}}})
		}
		fmt.Print(err)
	}
}

type failingResolver struct{}

func (failingResolver) Watch(context.Context, func([]string)) error {
	return errors.New("lookup app.test: no such host")
}

const childTroubleEnv = "PLUGWIRE_TEST_TROUBLE"

// troubles provoke the rows of docs/TROUBLESHOOTING.md, by section and symptom.
var troubles = map[string]func(*testing.T) error{
	"A pool/no address": func(t *testing.T) error {
		p := newTestPool(t, poolConfig(PoolConfig{MaxWait: 50 * time.Millisecond, Resolver: failingResolver{}}))
		_, err := p.Call(t.Context(), "greet", nil)
		return err
	},
	"Unix sockets/permission denied, server": func(t *testing.T) error {
		dir := socketDir(t)
		chmod(t, dir, 0o555)
		return troubleOfChild(t, "listen", "unix://"+dir+"/s")
	},
	"Unix sockets/permission denied, client": func(t *testing.T) error {
		path := openSocketDir(t) + "/s"
		listenUnix(t, "unix://"+path, nil)
		chmod(t, path, 0)
		return troubleOfChild(t, "dial", "unix://"+path)
	},
	"Unix sockets/address in use": func(t *testing.T) error {
		addr := "unix://" + socketDir(t) + "/s"
		listenUnix(t, addr, nil)
		return listenTrouble(addr)
	},
	"Unix sockets/no socket but a file": func(t *testing.T) error {
		path := socketDir(t) + "/s"
		writeFile(t, path, nil)
		return listenTrouble("unix://" + path)
	},
	"Unix sockets/path too long": func(t *testing.T) error {
		return listenTrouble("unix:///tmp/" + strings.Repeat("x", 120))
	},
	"Unix sockets/no such file": func(t *testing.T) error {
		return dialTrouble(t, "unix://"+socketDir(t)+"/s", nil)
	},
	"Unix sockets/connection refused": func(t *testing.T) error {
		path := socketDir(t) + "/s"
		makeStale(t, path)
		return dialTrouble(t, "unix://"+path, nil)
	},
	"Unix sockets/owner refused": func(t *testing.T) error {
		needRoot(t)
		path := socketDir(t) + "/s"
		listenUnix(t, "unix://"+path, nil)
		if err := os.Chown(path, otherUID, otherGID); err != nil {
			t.Fatal(err)
		}
		return dialTrouble(t, "unix://"+path, nil)
	},
	"Unix sockets/peer refused": func(t *testing.T) error {
		needRoot(t)
		saw, _ := dialAsOther(t, new(Config), 1)
		return errors.New(saw.Last)
	},

	"TCP/port in use": func(t *testing.T) error {
		return listenTrouble("tcp://" + answers(t, "").String())
	},
	"TCP/connection refused": func(t *testing.T) error {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		return dialTrouble(t, "tcp://"+l.Addr().String(), nil)
	},
	"TCP/plaintext beyond loopback": func(t *testing.T) error {
		return dialTrouble(t, "tcp://192.0.2.1:1", nil) // which RFC 5737 keeps for examples
	},
	"TCP/port below 1024": func(t *testing.T) error {
		l, err := (&Server{Config: &Config{TCP: TCPConfig{Port: 80}}}).Listen("tcp:")
		if err == nil {
			l.Close()
		}
		return err
	},
	"TCP/range used up": func(t *testing.T) error {
		_, err := (&TCPConfig{MinPort: 2000, MaxPort: 2001}).listen(func(string) (net.Listener, error) { return nil, &Error{Code: AlreadyExists} })
		return err
	},

	"Configuration/bad variable": func(t *testing.T) error {
		_, err := ConfigFromEnv(setEnv(t, "TCP_PORT", "http"))
		return err
	},
	"Configuration/transport not allowed": func(t *testing.T) error {
		return dialTrouble(t, "tcp://127.0.0.1:1", &Config{Transports: []string{"unix"}})
	},
	"Configuration/need not met": func(t *testing.T) error {
		return dialTrouble(t, "tcp://127.0.0.1:1", &Config{Need: Need{Encrypted: true}})
	},

	"Handshake/wrong protocol": func(t *testing.T) error {
		return dialTrouble(t, "tcp://"+answers(t, "HTTP/1.1 400 Bad Request\r\n\r\n").String(), nil)
	},
	"Handshake/nothing is sent": func(t *testing.T) error {
		return dialTrouble(t, "tcp://"+answers(t, "").String(), &Config{HandshakeTimeout: 20 * time.Millisecond})
	},
	"Handshake/version": func(t *testing.T) error {
		return handshakeTrouble(t, &Config{Versions: []int{1}}, &Config{Versions: []int{2, 3}})
	},
	"Handshake/one side without TLS": func(t *testing.T) error {
		return handshakeTrouble(t, nil, &Config{TLS: testTLS()})
	},
	"Handshake/certificate expired": func(t *testing.T) error {
		return certificateTrouble(t, testName, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, nil)
	},
	"Handshake/unknown authority": func(t *testing.T) error {
		return certificateTrouble(t, testName, nil, newTestCA(t))
	},
	"Handshake/wrong name": func(t *testing.T) error {
		return certificateTrouble(t, "elsewhere.test", nil, nil)
	},

	"Starting a plugin/missing": func(t *testing.T) error {
		return launchTrouble(t, "", func(lt *launchTest) { lt.cmd = exec.Command(lt.cfg.Unix.Dir + "/missing") })
	},
	"Starting a plugin/not in PATH": func(t *testing.T) error {
		return launchTrouble(t, "", func(lt *launchTest) { lt.cmd = exec.Command("plugwire-no-such-command") })
	},
	"Starting a plugin/not executable": func(t *testing.T) error {
		return launchTrouble(t, "", func(lt *launchTest) { lt.cmd = exec.Command(fileWith(lt.T, "#!/bin/sh\n", 0o644)) })
	},
	"Starting a plugin/wrong architecture": func(t *testing.T) error {
		header, err := os.ReadFile("cmd/plugwire/testdata/plugins/wrong-architecture")
		if err != nil {
			t.Fatal(err)
		}
		return launchTrouble(t, "", func(lt *launchTest) { lt.cmd = exec.Command(fileWith(lt.T, string(header), 0o755)) })
	},
	"Starting a plugin/no launch line": func(t *testing.T) error {
		return launchTrouble(t, "silent", func(lt *launchTest) { lt.cfg.Launch.StartTimeout = 50 * time.Millisecond })
	},
	"Starting a plugin/it exits at once":         func(t *testing.T) error { return launchTrouble(t, "exits 3", nil) },
	"Starting a plugin/something else on stdout": func(t *testing.T) error { return launchTrouble(t, "exits 0", nil) },
	"Starting a plugin/go-plugin":                func(t *testing.T) error { return launchTrouble(t, "go-plugin", nil) },
	"Starting a plugin/started by hand":          func(t *testing.T) error { return ServePlugin(NewMux(), nil) },
	"Starting a plugin/stdio without stdin":      func(t *testing.T) error { return stdioTrouble(t, "</dev/null") },
	"Starting a plugin/stdio with one output":    func(t *testing.T) error { return stdioTrouble(t, "2>&1") },
	"Starting a plugin/reattaching, gone": func(t *testing.T) error {
		gone := exec.Command(os.Args[0], "-test.run=^$")
		if err := gone.Run(); err != nil {
			t.Fatal(err)
		}
		_, err := Reattach(t.Context(), Attachment{Address: "unix:///x", Pid: gone.Process.Pid, Started: "once"}, nil)
		return err
	},
	"Starting a plugin/reattaching, taken": func(t *testing.T) error {
		lt := newParallelLaunchTest(t, "good")
		lt.cfg.Launch.Detach = time.Minute
		p := lt.launch()
		lt.greets(p) // or the plugin may not have seen yet that it has a host
		a, err := p.Attachment()
		if err == nil {
			_, err = Reattach(t.Context(), a, lt.cfg)
		}
		return err
	},
	"Starting a plugin/another host's plugin": func(t *testing.T) error { return launchTrouble(t, "other program", nil) },
	"Starting a plugin/version": func(t *testing.T) error {
		return launchTrouble(t, "versions 3 4", func(lt *launchTest) { lt.cfg.Versions = []int{1} })
	},
	"Starting a plugin/one-time secret missing": func(t *testing.T) error {
		return launchTrouble(t, "good", func(lt *launchTest) { lt.wrapped(`"$0" </dev/null; exit $?`) })
	},
	"Starting a plugin/another process answers": func(t *testing.T) error {
		l := listenUnix(t, "unix:", nil)
		go func() {
			if nc, err := l.Accept(); err == nil {
				io.Copy(io.Discard, nc)
				nc.Close()
			}
		}()
		return launchTrouble(t, "impostor", func(lt *launchTest) {
			lt.cmd.Env = append(lt.cmd.Env, impostorEnv+"=1|0|unix|"+l.Addr().String()+"|plugwire|")
		})
	},
	"Starting a plugin/no transport": func(t *testing.T) error {
		return launchTrouble(t, "good", func(lt *launchTest) { lt.cfg.Transports = []string{"warp"} })
	},
	"Starting a plugin/no common transport": func(t *testing.T) error {
		return launchTrouble(t, "only tcp", func(lt *launchTest) { lt.cfg.Transports = []string{"unix"} })
	},
	"Starting a plugin/no address can be dialled": func(t *testing.T) error {
		return launchTrouble(t, "fails", func(lt *launchTest) { lt.cmd.Env = append(lt.cmd.Env, failsEnv+"=dial unix, dial tcp") })
	},
	"Starting a plugin/the address is dead": func(t *testing.T) error { return launchTrouble(t, "dead address", nil) },
}

func TestTroubleshootingHasTheWordsOfEachError(t *testing.T) {
	page := troubleshootingPage(t)
	leavesNoDescriptors(t)
	for row, provoke := range troubles {
		t.Run(strings.ReplaceAll(row, " ", "-"), func(t *testing.T) {
			if strings.HasPrefix(row, "Starting a plugin/") { // others change the environment or the umask
				t.Parallel()
			}
			text, ok := page[row]
			if !ok {
				t.Fatal("docs/TROUBLESHOOTING.md has no such row")
			}
			err := provoke(t)
			if err == nil {
				t.Fatal("nothing is wrong")
			}
			rest := err.Error()
			for part := range strings.SplitSeq(text, "…") {
				_, after, found := strings.Cut(rest, strings.TrimSpace(part))
				if !found {
					t.Errorf("the page has %q, but the error is\n%v", part, err)
				}
				rest = after
			}
		})
	}
	for row := range page {
		if troubles[row] == nil {
			t.Errorf("nothing provokes %q", row)
		}
	}
}

// troubleshootingPage returns the texts of the page's rows.
func troubleshootingPage(t *testing.T) map[string]string {
	t.Helper()
	b, err := os.ReadFile("docs/TROUBLESHOOTING.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("^\\| ([^|]+) \\| `([^`]+)` \\| .+ \\| .+ \\| .+ \\|$")
	page, section := make(map[string]string), ""
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSuffix(line, "\n")
		if name, ok := strings.CutPrefix(line, "## "); ok {
			section = name
		}
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "| symptom |") || strings.HasPrefix(line, "|---") {
			continue
		}
		m := row.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("this row lacks something: %s", line)
		}
		page[section+"/"+m[1]] = m[2]
	}
	return page
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func fileWith(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	writeFile(t, path, []byte(text))
	chmod(t, path, mode)
	return path
}

func troubleOfChild(t *testing.T, op, addr string) error {
	t.Helper()
	cmd := childCommand("trouble", childTroubleEnv+"="+op, childAddrEnv+"="+addr)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return errors.New(string(out))
}

func listenTrouble(addr string) error {
	l, err := new(Server).Listen(addr)
	if err == nil {
		l.Close()
	}
	return err
}

func dialTrouble(t *testing.T, addr string, cfg *Config) error {
	c, err := Dial(t.Context(), addr, cfg)
	if err == nil {
		c.Close()
	}
	return err
}

// handshakeTrouble returns the error of the dialling side.
func handshakeTrouble(t *testing.T, dialler, listener *Config) error {
	t.Helper()
	err, _ := bothErrors(t, "unix", dialler, listener)
	return err
}

// certificateTrouble is that of a dialler who wants name, meets a server with an
// edited certificate, and trusts other, or else the server's authority.
func certificateTrouble(t *testing.T, name string, edit func(*x509.Certificate), other *testCA) error {
	t.Helper()
	ca := newTestCA(t)
	dialler, server := ca.trusting(ca.issue(t, nil)), ca.trusting(ca.issue(t, edit))
	dialler.Names = []string{name}
	if other != nil {
		dialler.SetRoots(roots(other))
	}
	return handshakeTrouble(t, &Config{TLS: dialler}, &Config{TLS: server})
}

// launchTrouble launches the plugin with the behaviour, after arrange, if any.
func launchTrouble(t *testing.T, behaviour string, arrange func(*launchTest)) error {
	t.Helper()
	lt := newParallelLaunchTest(t, behaviour)
	if arrange != nil {
		arrange(lt)
	}
	p, err := Launch(t.Context(), lt.cmd, lt.cfg)
	if err == nil {
		p.Close()
	}
	return err
}

// stdioTrouble launches a good plugin over stdio through a shell that redirects.
func stdioTrouble(t *testing.T, redirect string) error {
	t.Helper()
	return launchTrouble(t, "good", func(lt *launchTest) {
		env := lt.cmd.Env
		lt.cmd = exec.Command("sh", "-c", `exec "$0" `+redirect, os.Args[0])
		lt.cmd.Env = env
		lt.cfg.Transports = []string{"stdio"}
	})
}
