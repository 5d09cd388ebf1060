//go:build unix

package plugwire

import (
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// sockopt reads an integer option of a connection.
func sockopt(t *testing.T, c net.Conn, level, opt int) int {
	t.Helper()
	rc, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var v int
	if e := rc.Control(func(fd uintptr) { v, err = syscall.GetsockoptInt(int(fd), level, opt) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	return v
}

// wantBuffers checks the sizes of a connection's buffers, of which Linux tells
// the double, since it counts its own overhead.
func wantBuffers(t *testing.T, c net.Conn, send, receive int) {
	t.Helper()
	for opt, want := range map[int]int{syscall.SO_SNDBUF: send, syscall.SO_RCVBUF: receive} {
		if got := sockopt(t, c, syscall.SOL_SOCKET, opt); got != want {
			t.Errorf("%T: option %#x is %d, want %d", c, opt, got, want)
		}
	}
}

const testBuffer = 48 << 10

func kernelSize(n int) int {
	if runtime.GOOS == "linux" {
		return 2 * n
	}
	return n
}

func TestUnixBufferSizes(t *testing.T) {
	pair := func(size int) (d, a net.Conn) {
		cfg := (&Config{Unix: UnixConfig{BufferSize: size}}).withDefaults()
		ln := listenUnix(t, "unix:", cfg)
		d, err := unixTransport{}.Dial(t.Context(), addrURI(ln.Addr()), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		if a, err = ln.Accept(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { a.Close() })
		return d, a
	}
	d, a := pair(testBuffer)
	wantBuffers(t, d, kernelSize(testBuffer), kernelSize(testBuffer))
	wantBuffers(t, a, kernelSize(testBuffer), kernelSize(testBuffer))

	d, a = pair(0)
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fds[0])
	defer syscall.Close(fds[1])
	send, err1 := syscall.GetsockoptInt(fds[0], syscall.SOL_SOCKET, syscall.SO_SNDBUF)
	receive, err2 := syscall.GetsockoptInt(fds[0], syscall.SOL_SOCKET, syscall.SO_RCVBUF)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	wantBuffers(t, d, send, receive)
	wantBuffers(t, a, send, receive)
}

func TestTCPOptions(t *testing.T) {
	both := func(cfg *Config, check func(t *testing.T, c net.Conn)) {
		t.Helper()
		d, a := dialTCP(t, listenTCP(t, "tcp:", cfg), cfg)
		check(t, d)
		check(t, a)
	}
	on := func(t *testing.T, c net.Conn, what string, level, opt int, want bool) {
		t.Helper()
		if got := sockopt(t, c, level, opt) != 0; got != want {
			t.Errorf("%s is %v, want %v", what, got, want)
		}
	}
	both(nil, func(t *testing.T, c net.Conn) {
		on(t, c, "TCP_NODELAY", syscall.IPPROTO_TCP, syscall.TCP_NODELAY, true)
		on(t, c, "SO_KEEPALIVE", syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, true)
	})
	both(&Config{TCP: TCPConfig{Delay: true, KeepAlive: -1, BufferSize: testBuffer}}, func(t *testing.T, c net.Conn) {
		on(t, c, "TCP_NODELAY", syscall.IPPROTO_TCP, syscall.TCP_NODELAY, false)
		on(t, c, "SO_KEEPALIVE", syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, false)
		if runtime.GOOS == "linux" { // others round
			wantBuffers(t, c, kernelSize(testBuffer), kernelSize(testBuffer))
		}
	})
	if runtime.GOOS == "linux" {
		const idle, interval = 4, 5 // TCP_KEEPIDLE, TCP_KEEPINTVL
		both(&Config{TCP: TCPConfig{KeepAlive: 7 * time.Second}}, func(t *testing.T, c net.Conn) {
			if i, v := sockopt(t, c, syscall.IPPROTO_TCP, idle), sockopt(t, c, syscall.IPPROTO_TCP, interval); i != 7 || v != 7 {
				t.Errorf("keep-alive after %d s, every %d s; want 7", i, v)
			}
		})
	}
}
