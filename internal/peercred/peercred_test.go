package peercred

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

// connect returns the two ends of one connection.
func connect(t *testing.T, network, addr string) (dialled, accepted net.Conn) {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Skipf("no %s sockets here: %v", network, err)
	}
	defer ln.Close()
	if dialled, err = net.Dial(network, ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close() })
	if accepted, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })
	return dialled, accepted
}

func raw(t *testing.T, c net.Conn) syscall.RawConn {
	t.Helper()
	rc, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	return rc
}

func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "peercred") // t.TempDir is too long for a socket on some systems
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func TestBothEndsOfAUnixSocketAreNamed(t *testing.T) {
	dialled, accepted := connect(t, "unix", socketPath(t))
	for name, c := range map[string]net.Conn{"dialled": dialled, "accepted": accepted} {
		got, err := Of(raw(t, c))
		switch runtime.GOOS {
		case "linux", "darwin", "freebsd", "openbsd", "netbsd":
			want := Cred{UID: os.Geteuid(), GID: os.Getegid(), PID: os.Getpid()}
			if runtime.GOOS == "freebsd" {
				want.PID = -1
			}
			if err != nil || got != want {
				t.Errorf("%s: got %+v, %v; want %+v", name, got, err, want)
			}
		default:
			if !errors.Is(err, errors.ErrUnsupported) || got != unknown {
				t.Errorf("%s: got %+v, %v; want unknown and ErrUnsupported", name, got, err)
			}
		}
	}
}

func TestAnythingButALiveUnixSocketIsAnErrorAndNobody(t *testing.T) {
	tcp, _ := connect(t, "tcp", "127.0.0.1:0")
	closed, _ := connect(t, "unix", socketPath(t))
	rc := raw(t, closed)
	closed.Close()
	for name, rc := range map[string]syscall.RawConn{"tcp": raw(t, tcp), "closed": rc} {
		if got, err := Of(rc); err == nil || got != unknown {
			t.Errorf("%s: got %+v, %v; want an error and unknown", name, got, err)
		}
	}
}
