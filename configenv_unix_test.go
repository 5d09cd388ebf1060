//go:build unix

package plugwire

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serveEnv serves "echo" and "block" at addr with the Config that these variables
// give, and returns a connection to it, with dial as its Config.
func serveEnv(t *testing.T, addr string, dial *Config, pairs ...string) *Conn {
	t.Helper()
	l := serveMux(t, addr, fromEnv(t, pairs...))
	c, err := Dial(t.Context(), addrURI(l.Addr()), dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// serveMux serves "echo" and "block" at addr until the test ends.
func serveMux(t *testing.T, addr string, cfg *Config) net.Listener {
	t.Helper()
	s := &Server{Mux: echoMux(nil), Config: cfg}
	l, err := s.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l
}

// listens returns where a Server with the variables listens.
func listens(t *testing.T, addr string, pairs ...string) net.Listener {
	t.Helper()
	l, err := (&Server{Config: fromEnv(t, pairs...)}).Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// rawDialled returns a raw connection that was dialled with the variables.
func rawDialled(t *testing.T, scheme string, pairs ...string) net.Conn {
	t.Helper()
	l := listens(t, scheme+":")
	c, err := builtinTransports[scheme].Dial(t.Context(), addrURI(l.Addr()), fromEnv(t, pairs...).withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// stderrOf returns what f writes to stderr.
func stderrOf(t *testing.T, f func()) string {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	old := os.Stderr
	os.Stderr = file
	defer func() { os.Stderr = old }()
	f()
	file.Close()
	b, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func portOf(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

// freePort is one that was free a moment ago.
func freePort(t *testing.T) string {
	l := listens(t, "tcp:")
	l.Close()
	return strconv.Itoa(portOf(l))
}

func init() {
	for name, effect := range map[string]func(*testing.T){
		"SERVER_TRANSPORTS": func(t *testing.T) {
			cfg := fromEnv(t, "SERVER_TRANSPORTS", "unix")
			_, err := (&Server{Config: cfg}).Listen("tcp:")
			if CodeOf(err) != PermissionDenied || !strings.Contains(err.Error(), `PWTEST_SERVER_TRANSPORTS allows ["unix"] only`) {
				t.Error(err)
			}
			if _, err := Dial(t.Context(), "tcp://127.0.0.1:1", cfg); CodeOf(err) != Unavailable { // a dialler may
				t.Error(err)
			}
		},
		"CLIENT_TRANSPORTS": func(t *testing.T) {
			cfg := fromEnv(t, "CLIENT_TRANSPORTS", "unix")
			_, err := Dial(t.Context(), "tcp://127.0.0.1:1", cfg)
			if CodeOf(err) != PermissionDenied || !strings.Contains(err.Error(), `PWTEST_CLIENT_TRANSPORTS allows ["unix"] only`) {
				t.Error(err)
			}
			listens(t, "tcp:", "CLIENT_TRANSPORTS", "unix")
			lt := newLaunchTest(t, "good")
			lt.cfg.env, lt.cfg.Launch.NoAutoMTLS = fromEnv(t, "CLIENT_TRANSPORTS", "tcp").env, !builtWithTLS
			if s := lt.launch().Selection(); s.Chosen != "tcp" || !strings.Contains(s.String(), "PWTEST_CLIENT_TRANSPORTS") {
				t.Error(s)
			}
		},
		"UNIX_SOCKET_PATH": func(t *testing.T) {
			path := socketDir(t) + "/own"
			if l := listens(t, "unix:", "UNIX_SOCKET_PATH", path); l.Addr().String() != path {
				t.Error(l.Addr())
			}
		},
		"UNIX_SOCKET_DIR": func(t *testing.T) {
			dir := socketDir(t)
			if l := listens(t, "unix:", "UNIX_SOCKET_DIR", dir); filepath.Dir(filepath.Dir(l.Addr().String())) != dir {
				t.Error(l.Addr())
			}
		},
		"UNIX_SOCKET_PERMISSIONS": func(t *testing.T) {
			l := listens(t, "unix:", "UNIX_SOCKET_PERMISSIONS", "0640")
			if fi, err := os.Stat(l.Addr().String()); err != nil || fi.Mode().Perm() != 0o640 {
				t.Error(fi.Mode(), err)
			}
		},
		"UNIX_SOCKET_GROUP": func(t *testing.T) {
			needRoot(t)
			l := listens(t, "unix:", "UNIX_SOCKET_GROUP", "4321")
			fi, err := os.Stat(l.Addr().String())
			if err != nil || fi.Sys().(*syscall.Stat_t).Gid != 4321 {
				t.Error(fi, err)
			}
		},
		"UNIX_SOCKET_BUFFER_SIZE": func(t *testing.T) {
			c := rawDialled(t, "unix", "UNIX_SOCKET_BUFFER_SIZE", strconv.Itoa(testBuffer))
			wantBuffers(t, c, kernelSize(testBuffer), kernelSize(testBuffer))
		},
		"TCP_HOST": func(t *testing.T) {
			host := "127.0.0.2"
			if runtime.GOOS != "linux" {
				host = "::1"
			}
			if l := listens(t, "tcp:", "TCP_HOST", host); l.Addr().(*net.TCPAddr).IP.String() != host {
				t.Error(l.Addr())
			}
		},
		"TCP_PORT": func(t *testing.T) {
			port := freePort(t)
			if l := listens(t, "tcp:", "TCP_PORT", port); strconv.Itoa(portOf(l)) != port {
				t.Error(l.Addr())
			}
		},
		"MIN_PORT": func(t *testing.T) {
			if l := listens(t, "tcp:", "MIN_PORT", "60000"); portOf(l) < 60000 {
				t.Error(l.Addr())
			}
		},
		"MAX_PORT": func(t *testing.T) {
			if l := listens(t, "tcp:", "MAX_PORT", "1100"); portOf(l) < 1024 || portOf(l) > 1100 {
				t.Error(l.Addr())
			}
		},
		"TCP_NODELAY": func(t *testing.T) {
			if c := rawDialled(t, "tcp", "TCP_NODELAY", "false"); sockopt(t, c, syscall.IPPROTO_TCP, syscall.TCP_NODELAY) != 0 {
				t.Error("small segments go out at once")
			}
		},
		"TCP_BUFFER_SIZE": func(t *testing.T) {
			c := rawDialled(t, "tcp", "TCP_BUFFER_SIZE", strconv.Itoa(testBuffer))
			wantBuffers(t, c, kernelSize(testBuffer), kernelSize(testBuffer))
		},
		"TCP_KEEPALIVE": func(t *testing.T) {
			if c := rawDialled(t, "tcp", "TCP_KEEPALIVE", "none"); sockopt(t, c, syscall.SOL_SOCKET, syscall.SO_KEEPALIVE) != 0 {
				t.Error("it probes")
			}
		},
		"AUTO_MTLS": func(t *testing.T) {
			lt := newLaunchTest(t, "good")
			lt.cfg.Transports = []string{"tcp"}
			lt.cfg.Launch.NoAutoMTLS = fromEnv(t, "AUTO_MTLS", "false").Launch.NoAutoMTLS
			if s := lt.launch().Selection(); strings.Contains(s.String(), "mutual TLS") {
				t.Error(s)
			}
			if cfg := fromEnv(t, "AUTO_MTLS", "true"); !cfg.Launch.AutoMTLS || cfg.Launch.NoAutoMTLS {
				t.Error(cfg.Launch)
			}
		},
		"HANDSHAKE_TIMEOUT": func(t *testing.T) {
			_, err := Dial(t.Context(), "tcp://"+answers(t, "").String(), fromEnv(t, "HANDSHAKE_TIMEOUT", "20ms"))
			if err == nil || !strings.Contains(err.Error(), "sent nothing") {
				t.Error(err)
			}
		},
		"CONNECTION_TIMEOUT": func(t *testing.T) {
			cfg := fromEnv(t, "CONNECTION_TIMEOUT", "0.02")
			cfg.Custom = map[string]Transport{"slow": slowTransport{}}
			if _, err := Dial(t.Context(), "slow:", cfg); !strings.Contains(err.Error(), "deadline exceeded") {
				t.Error(err)
			}
		},
		"CONNECTION_POOL_SIZE": func(t *testing.T) {
			p := NewPool(fromEnv(t, "CONNECTION_POOL_SIZE", "2"), addrURI(serveMux(t, "unix:", nil).Addr()))
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			for range 3 {
				go func() { p.Call(ctx, "block", nil); done <- struct{}{} }()
			}
			until(t, "two connections", func() bool {
				p.Call(ctx, "echo", nil) // a call beside others has a further one opened
				return p.Stats().Open == 2 && p.Stats().InFlight == 3
			})
			cancel()
			for range 3 {
				<-done
			}
			p.Close()
		},
		"MAX_MESSAGE_SIZE": func(t *testing.T) {
			c := serveEnv(t, "unix:", nil, "MAX_MESSAGE_SIZE", "5000")
			if _, err := c.Call(t.Context(), "echo", make([]byte, 5000)); err != nil {
				t.Error(err)
			}
			_, err := c.Call(t.Context(), "echo", make([]byte, 5001))
			wantCode(t, err, ResourceExhausted, true)
		},
		"MAX_CONCURRENT_CALLS": func(t *testing.T) {
			if c := serveEnv(t, "unix:", nil, "MAX_CONCURRENT_CALLS", "3"); c.limits.calls != 3 {
				t.Error(c.limits)
			}
		},
		"RATE_LIMIT_REQUESTS_PER_SECOND": func(t *testing.T) {
			c := serveEnv(t, "unix:", nil, "RATE_LIMIT_REQUESTS_PER_SECOND", "0.001")
			if _, err := c.Call(t.Context(), "echo", nil); err != nil {
				t.Error(err)
			}
			_, err := c.Call(t.Context(), "echo", nil)
			wantCode(t, err, ResourceExhausted, true)
		},
		"RATE_LIMIT_BURST_CAPACITY": func(t *testing.T) {
			c := serveEnv(t, "unix:", nil, "RATE_LIMIT_REQUESTS_PER_SECOND", "0.001", "RATE_LIMIT_BURST_CAPACITY", "3")
			for range 3 {
				if _, err := c.Call(t.Context(), "echo", nil); err != nil {
					t.Error(err)
				}
			}
			_, err := c.Call(t.Context(), "echo", nil)
			wantCode(t, err, ResourceExhausted, true)
		},
		"SHUTDOWN_GRACE": func(t *testing.T) {
			lt := newLaunchTest(t, "stubborn")
			cfg := fromEnv(t, "SHUTDOWN_GRACE", "50ms")
			lt.cfg.Launch.ExitTimeout, lt.cfg.CloseTimeout = cfg.Launch.ExitTimeout, cfg.CloseTimeout
			if err := lt.launch().Close(); err == nil || !strings.Contains(err.Error(), "did not exit within 50ms") {
				t.Error(err)
			}
			if cfg.withDefaults().CloseTimeout != 50*time.Millisecond {
				t.Error(cfg.CloseTimeout)
			}
		},
		"LOG_LEVEL": func(t *testing.T) {
			said := stderrOf(t, func() {
				log := fromEnv(t, "LOG_LEVEL", "warn", "TCP_PROT", "1").Logger
				log.Info("quiet")
				log.Warn("loud")
			})
			if !strings.Contains(said, "msg=loud") || strings.Contains(said, "quiet") ||
				!strings.Contains(said, `level=WARN msg="plugwire: PWTEST_TCP_PROT is no setting of plugwire"`) {
				t.Error(said)
			}
		},
		"LOG_TRANSPORT_DETAILS": func(t *testing.T) {
			said := stderrOf(t, func() {
				cfg := fromEnv(t, "LOG_TRANSPORT_DETAILS", "1")
				l := serveMux(t, "unix:", cfg)
				c, err := Dial(t.Context(), addrURI(l.Addr()), cfg)
				if err != nil {
					t.Fatal(err)
				}
				c.Close()
				Dial(t.Context(), "tcp://127.0.0.1:1", cfg)
				Dial(t.Context(), "tcp://"+answers(t, "HTTP/1.1\r\n").String(), cfg)
				(&Server{Config: cfg}).Listen(addrURI(l.Addr()))
				lt := newLaunchTest(t, "good")
				lt.cfg.LogTransport, lt.cfg.Logger = cfg.LogTransport, cfg.Logger
				lt.launch().Close()
			})
			for _, want := range []string{`level=INFO msg="plugwire: listen" addr=unix:///`, `msg="plugwire: listen failed"`,
				`msg="plugwire: dial" addr=unix:///`, `msg="plugwire: dial failed" addr=tcp://127.0.0.1:1`,
				`msg="plugwire: handshake" addr=unix:///`, `msg="plugwire: handshake failed" addr=tcp://127.0.0.1`,
				`msg="plugwire: transport choice"`} {
				if !strings.Contains(said, want) {
					t.Errorf("%s\ndoes not say %s", said, want)
				}
			}
		},
	} {
		envEffects[name] = effect
	}
}

// answers is a server that says what it always says, until the test ends.
func answers(t *testing.T, text string) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(nc, text)
			io.Copy(io.Discard, nc) // until the other side has had enough
			nc.Close()
		}
	}()
	return l.Addr()
}

// slowTransport answers when it is too late.
type slowTransport struct{}

func (slowTransport) Listen(context.Context, string, *Config) (net.Listener, error) {
	return nil, io.EOF
}

func (slowTransport) Dial(ctx context.Context, _ string, _ *Config) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// Nothing is read, and nothing goes wrong, where there is no ConfigFromEnv.
func TestNilConfigDoesNotReadTheEnvironment(t *testing.T) {
	for _, v := range envVars() {
		t.Setenv("PLUGIN_"+v.name, "of no use")
	}
	serveEnv(t, "unix:", nil)
	lt := newLaunchTest(t, "good")
	lt.cmd.Env = append(lt.cmd.Env, "PLUGIN_TCP_PORT=of no use")
	lt.greets(lt.launch())
}
