package plugwire

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
)

func listenTCP(t *testing.T, addr string, cfg *Config) net.Listener {
	t.Helper()
	ln, err := tcpTransport{}.Listen(t.Context(), addr, cfg.withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// dialTCP connects to a listener and returns both ends.
func dialTCP(t *testing.T, ln net.Listener, cfg *Config) (dialled, accepted net.Conn) {
	t.Helper()
	dialled, err := tcpTransport{}.Dial(t.Context(), addrURI(ln.Addr()), cfg.withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close() })
	if accepted, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })
	return dialled, accepted
}

// wantError checks an error's type and fields, and that its text has all parts.
func wantError(t *testing.T, err error, code Code, op, addr string, parts ...string) {
	t.Helper()
	e, ok := err.(*Error)
	if !ok {
		t.Errorf("got %T %v; want an *Error", err, err)
		return
	}
	if e.Code != code || e.Op != op || e.Addr != addr {
		t.Errorf("got code %v, op %q, addr %q; want %v, %q, %q: %v", e.Code, e.Op, e.Addr, code, op, addr, err)
	}
	for _, p := range parts {
		if !strings.Contains(e.Error(), p) {
			t.Errorf("%q does not say %q", e, p)
		}
	}
}

func TestTCPWithoutAHostIsLoopback(t *testing.T) {
	for _, addr := range []string{"tcp:", "tcp://", "tcp://:0", "tcp://:", "tcp::0", "tcp://127.0.0.1:0", "tcp://localhost:0"} {
		ln := listenTCP(t, addr, nil)
		a := ln.Addr().(*net.TCPAddr)
		if !a.IP.IsLoopback() || a.Port == 0 {
			t.Errorf("%s listens at %v", addr, a)
		}
		if strings.HasSuffix(addr, ":") && !a.IP.Equal(net.IPv4(127, 0, 0, 1)) {
			t.Errorf("%s listens at %v", addr, a)
		}
		d, acc := dialTCP(t, ln, nil)
		for _, c := range []net.Conn{d, acc} {
			if _, ok := c.(*net.TCPConn); !ok {
				t.Errorf("got a %T", c)
			}
		}
		if _, err := d.Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4)
		if _, err := io.ReadFull(acc, buf); err != nil || string(buf) != "ping" {
			t.Errorf("read %q, %v", buf, err)
		}
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
		if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept after close: %v", err)
		}
	}
}

func hasIPv6(t *testing.T) bool {
	ln, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Log("no IPv6 here:", err)
		return false
	}
	ln.Close()
	return true
}

func TestIPv6Loopback(t *testing.T) {
	if !hasIPv6(t) {
		t.SkipNow()
	}
	ln := listenTCP(t, "tcp://[::1]:0", nil)
	if got := addrURI(ln.Addr()); !strings.HasPrefix(got, "tcp://[::1]:") {
		t.Errorf("the address is %s", got)
	}
	dialTCP(t, ln, nil)
}

func TestT11ListeningBeyondLoopbackIsRefused(t *testing.T) {
	cfg := new(Config).withDefaults()
	for _, addr := range []string{"tcp://0.0.0.0:0", "tcp://[::ffff:0.0.0.0]:0", "tcp://[::]:0"} {
		if strings.Contains(addr, "[::]") && !hasIPv6(t) {
			continue
		}
		_, err := tcpTransport{}.Listen(t.Context(), addr, cfg)
		wantError(t, err, PermissionDenied, "listen", addr, "not a loopback address", "Config.TCP.Insecure")
	}
	ln := listenTCP(t, "tcp://0.0.0.0:0", &Config{TCP: TCPConfig{Insecure: true}})
	if a := ln.Addr().(*net.TCPAddr); !a.IP.IsUnspecified() {
		t.Errorf("listening at %v", a)
	}
}

// A refused dial must not even connect: the first connection that the listener
// sees is that of the dial which is allowed.
func TestT11DiallingBeyondLoopbackIsRefusedBeforeItConnects(t *testing.T) {
	insecure := &Config{TCP: TCPConfig{Insecure: true}}
	_, err := tcpTransport{}.Dial(t.Context(), "tcp://192.0.2.1:9", new(Config).withDefaults())
	wantError(t, err, PermissionDenied, "dial", "tcp://192.0.2.1:9", "192.0.2.1:9 is not a loopback address", "Config.TCP.Insecure")

	var own net.IP
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && n.IP.To4() != nil {
			own = n.IP
		}
	}
	if own == nil {
		t.Skip("this machine has no IPv4 address but loopback")
	}
	ln := listenTCP(t, "tcp://"+own.String()+":0", insecure)
	addr := addrURI(ln.Addr())
	_, err = tcpTransport{}.Dial(t.Context(), addr, new(Config).withDefaults())
	wantError(t, err, PermissionDenied, "dial", addr, "not a loopback address")
	d, a := dialTCP(t, ln, insecure)
	if d.LocalAddr().String() != a.RemoteAddr().String() {
		t.Errorf("accepted %v before %v", a.RemoteAddr(), d.LocalAddr())
	}
}

func TestTCPAddressesAreChecked(t *testing.T) {
	cfg := new(Config).withDefaults()
	for _, addr := range []string{"tcp://localhost", "tcp://::1:80", "tcp://[::1]", "tcp://127.0.0.1:http", "tcp://127.0.0.1:65536",
		"tcp://127.0.0.1:80/path"} {
		_, err := tcpTransport{}.Listen(t.Context(), addr, cfg)
		wantError(t, err, InvalidArgument, "listen", addr, `write "tcp://host:port"`)
		_, err = tcpTransport{}.Dial(t.Context(), addr, cfg)
		wantError(t, err, InvalidArgument, "dial", addr, `write "tcp://host:port"`)
	}
	for _, addr := range []string{"tcp:", "tcp://127.0.0.1:0"} {
		_, err := tcpTransport{}.Dial(t.Context(), addr, cfg)
		wantError(t, err, InvalidArgument, "dial", addr, "no port")
	}
}

func TestTCPErrorsAreTyped(t *testing.T) {
	ln := listenTCP(t, "tcp:", nil)
	addr := addrURI(ln.Addr())
	cfg := new(Config).withDefaults()
	_, err := tcpTransport{}.Listen(t.Context(), addr, cfg)
	wantError(t, err, AlreadyExists, "listen", addr, "another process has this port")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = tcpTransport{}.Dial(ctx, addr, cfg)
	wantError(t, err, Canceled, "dial", addr)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v is not context.Canceled", err)
	}

	ln.Close()
	_, err = tcpTransport{}.Dial(t.Context(), addr, cfg)
	wantError(t, err, Unavailable, "dial", addr, "is the server running")
}
