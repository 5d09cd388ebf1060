package peercred

import (
	"errors"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
)

// A thread that has given up root connects: the accepting side must see who it
// became, not whom its process belongs to.
func TestAnotherUserIsSeenAsAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	const nobody, nogroup = 65534, 65533
	path := socketPath(t)
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := errors.Join(os.Chmod(path, 0o666), os.Chmod(path[:len(path)-2], 0o755)); err != nil {
		t.Fatal(err)
	}
	dialled := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESGID, nogroup, nogroup, nogroup); e != 0 {
			dialled <- e
			return
		}
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, nobody, nobody, nobody); e != 0 {
			dialled <- e
			return
		}
		c, err := net.Dial("unix", path)
		if err == nil {
			c.Close()
		}
		dialled <- err
	}()
	if err := <-dialled; err != nil {
		t.Fatal(err)
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// The peer has closed by now; its credentials stay.
	got, err := Of(raw(t, c))
	if want := (Cred{UID: nobody, GID: nogroup, PID: os.Getpid()}); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func TestASocketThatNobodyConnectedToHasNoPeer(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	rc, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Of(rc); !errors.Is(err, errors.ErrUnsupported) || got != unknown {
		t.Errorf("got %+v, %v; want unknown and ErrUnsupported", got, err)
	}
}
