package peercred

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
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

// A process connects and exits. Its successor with the same pid, which is made
// here when root can choose pids, is not taken for it.
func TestAProcessIsAliveUntilItExits(t *testing.T) {
	for name, option := range map[string]int{"SO_PEERPIDFD": soPeerPidfd, "pidfd_open": 0x7fff} {
		t.Run(name, func(t *testing.T) {
			child, conn := connectChild(t)
			rc := raw(t, conn)
			cred, err := Of(rc)
			if err != nil || cred.PID != child.Process.Pid {
				t.Fatalf("got %+v, %v; want pid %d", cred, err, child.Process.Pid)
			}
			var pidfd int
			if e := rc.Control(func(fd uintptr) { pidfd, err = pidfdOf(int(fd), option, cred.PID) }); e != nil || err != nil {
				t.Fatal(e, err)
			}
			if flags, _, e := syscall.Syscall(syscall.SYS_FCNTL, uintptr(pidfd), syscall.F_GETFD, 0); e != 0 || flags&syscall.FD_CLOEXEC == 0 {
				t.Error("children would inherit the descriptor")
			}
			p := &Process{f: os.NewFile(uintptr(pidfd), "pidfd")}
			defer p.Close()
			if !p.Alive() {
				t.Error("not alive while it runs")
			}
			child.Process.Kill()
			child.Wait()
			if p.Alive() {
				t.Error("alive after its exit")
			}
			if again := ProcessOf(rc, cred); again.Alive() || again.Executable() != "" {
				t.Errorf("asked again after its exit: alive %v, running %q", again.Alive(), again.Executable())
			}
			successor := startAs(t, child.Process.Pid)
			if successor == nil {
				t.Log("no pid could be used again: only root can, on kernels that allow it")
				return
			}
			if p.Alive() {
				t.Error("its successor is taken for it")
			}
			if again := ProcessOf(rc, cred); again.Alive() || again.Executable() != "" {
				t.Errorf("asked again, its successor's program %q is taken for its own", again.Executable())
			}
		})
	}
}

func TestAProcessThatWasClosedIsNotAlive(t *testing.T) {
	_, conn := connectChild(t)
	cred, err := Of(raw(t, conn))
	if err != nil {
		t.Fatal(err)
	}
	p := ProcessOf(raw(t, conn), cred)
	if self, err := os.Readlink("/proc/self/exe"); err != nil || p.Executable() != self || !p.Alive() {
		t.Errorf("alive %v, running %q, want %q (%v)", p.Alive(), p.Executable(), self, err)
	}
	var wg sync.WaitGroup
	for range 4 { // close comes in between
		wg.Go(func() {
			for p.Alive() {
			}
		})
	}
	p.Close()
	wg.Wait()
	p.Close()
	if p.Alive() {
		t.Error("alive after Close")
	}
	var none *Process
	none.Close()
	if none.Alive() || none.Executable() != "" {
		t.Error("nobody is alive")
	}
}

const childEnv = "PEERCRED_TEST_CONNECT"

// TestMain plays the child that connectChild starts.
func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		if c, err := net.Dial("unix", path); err == nil {
			c.Read(make([]byte, 1)) // until the test is over
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// connectChild starts a process that connects, and returns the accepted end.
func connectChild(t *testing.T) (*exec.Cmd, net.Conn) {
	t.Helper()
	path := socketPath(t)
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childEnv+"="+path)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { child.Process.Kill(); child.Wait() })
	ln.(*net.UnixListener).SetDeadline(time.Now().Add(20 * time.Second))
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return child, conn
}

// startAs starts a process with a pid that was just given up, or returns nil.
func startAs(t *testing.T, pid int) *exec.Cmd {
	for range 100 { // others start processes meanwhile
		if os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0) != nil {
			return nil
		}
		cmd := exec.Command("/bin/sleep", "60")
		if cmd.Start() != nil {
			return nil
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		if cmd.Process.Pid == pid {
			return cmd
		}
	}
	return nil
}
