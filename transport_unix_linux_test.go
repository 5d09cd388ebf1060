package plugwire

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	childUmaskEnv = "PLUGWIRE_TEST_UMASK"
	childModeEnv  = "PLUGWIRE_TEST_MODE"
)

func init() {
	children["unix-modes"] = watchModes
}

const watchedListens = 100

// watchModes is a child that listens and closes many times under some umask,
// while one thread looks at the socket's mode and, if it runs as root, another
// that has become a different user tries to connect. It prints what they saw.
func watchModes() {
	mask, _ := strconv.ParseUint(os.Getenv(childUmaskEnv), 8, 32)
	mode, _ := strconv.ParseUint(os.Getenv(childModeEnv), 8, 32)
	addr := os.Getenv(childAddrEnv)
	path := strings.TrimPrefix(addr, "unix://")
	syscall.Umask(int(mask))

	var stop atomic.Bool
	var wg sync.WaitGroup
	seen := map[fs.FileMode]int{}
	wg.Go(func() {
		for !stop.Load() {
			if fi, err := os.Lstat(path); err == nil {
				seen[fi.Mode()]++
			}
		}
	})
	tries, connected := 0, 0
	if os.Geteuid() == 0 {
		wg.Go(func() {
			runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
			for _, call := range [][4]uintptr{
				{syscall.SYS_SETGROUPS, 0, 0, 0},
				{syscall.SYS_SETRESGID, 65534, 65534, 65534},
				{syscall.SYS_SETRESUID, 65534, 65534, 65534},
			} {
				if _, _, e := syscall.RawSyscall(call[0], call[1], call[2], call[3]); e != 0 {
					fmt.Println("system call", call, e)
					return
				}
			}
			for ok := true; ok; ok = !stop.Load() {
				tries++
				if c, err := net.Dial("unix", path); err == nil {
					c.Close()
					connected++
				}
			}
		})
	}
	cfg := (&Config{Unix: UnixConfig{Mode: fs.FileMode(mode)}}).withDefaults()
	last := map[fs.FileMode]int{}
	for range watchedListens {
		ln, err := unixTransport{}.Listen(context.Background(), addr, cfg)
		if err != nil {
			fmt.Println(err)
			break
		}
		if fi, err := os.Lstat(path); err == nil {
			last[fi.Mode()]++
		}
		runtime.Gosched() // a turn for those who watch, also on one processor
		ln.Close()
	}
	stop.Store(true)
	wg.Wait()
	fmt.Printf("last %v\nseen %v\ntries %d connected %d\n", last, seen, tries, connected)
}

// runWatchModes runs the child and returns the modes after Listen, those seen at
// any time, and whether the other user tried and got in.
func runWatchModes(t *testing.T, umask, mode string) (last, seen map[string]int, tries, connected int) {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "pw") // making files on a disk can take milliseconds
	if err != nil {
		dir = socketDir(t)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // only the socket's mode protects it
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=unix-modes", childUmaskEnv+"="+umask, childModeEnv+"="+mode,
		childAddrEnv+"=unix://"+filepath.Join(dir, "x"),
		"GORACE=atexit_sleep_ms=0") // by default a child with the race detector takes a second to exit
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	lines := strings.Split(string(out), "\n")
	if len(lines) != 4 {
		t.Fatalf("the child says:\n%s", out)
	}
	modes := func(line, prefix string) map[string]int {
		m := map[string]int{}
		for _, f := range strings.Fields(strings.Trim(strings.TrimPrefix(line, prefix+" map"), "[]")) {
			mode, n, _ := strings.Cut(f, ":")
			m[mode], _ = strconv.Atoi(n)
		}
		return m
	}
	if _, err := fmt.Sscanf(lines[2], "tries %d connected %d", &tries, &connected); err != nil {
		t.Fatalf("%v in:\n%s", err, out)
	}
	return modes(lines[0], "last"), modes(lines[1], "seen"), tries, connected
}

func TestTheSocketsModeIsRightFromTheFirstInstant(t *testing.T) {
	for _, c := range []struct {
		umask, mode, last string
		seen              []string
	}{
		{"0", "600", "Srw-------", []string{"Srw-------"}},
		{"22", "600", "Srw-------", []string{"Srw-------"}},
		{"77", "660", "Srw-rw----", []string{"Srw-------", "Srw-rw----"}}, // never more than asked for
	} {
		t.Run("umask "+c.umask+" mode "+c.mode, func(t *testing.T) {
			last, seen, tries, connected := runWatchModes(t, c.umask, c.mode)
			if len(last) != 1 || last[c.last] != watchedListens {
				t.Errorf("modes after Listen: %v; want only %s", last, c.last)
			}
			for _, m := range c.seen {
				delete(seen, m)
			}
			if len(seen) != 0 {
				t.Errorf("other modes were seen: %v", seen)
			}
			if connected != 0 {
				t.Errorf("another user got in %d times", connected)
			}
			switch {
			case os.Geteuid() != 0:
				t.Log("not root: no other user tried to connect")
			case tries == 0:
				t.Error("the other user never tried")
			}
		})
	}
}

// The umask is the process's own business.
func TestListenLeavesTheUmaskAlone(t *testing.T) {
	mask := func() string {
		b, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Skip("no /proc here:", err)
		}
		_, rest, _ := strings.Cut(string(b), "\nUmask:")
		line, _, _ := strings.Cut(rest, "\n")
		return strings.TrimSpace(line)
	}
	before := mask()
	listenUnix(t, "unix:", nil)
	if after := mask(); after != before {
		t.Errorf("the umask was %s, is %s", before, after)
	}
}

// Only Linux tells a full backlog from a server that is gone.
func TestDialWaitsWhileTheBacklogIsFull(t *testing.T) {
	ln := listenUnix(t, "unix:", nil)
	addr := addrURI(ln.Addr())
	cfg := new(Config).withDefaults()
	rc, err := ln.ln.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := rc.Control(func(fd uintptr) { err = syscall.Listen(int(fd), 0) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	first, err := unixTransport{}.Dial(t.Context(), addr, cfg) // fills a backlog of 0
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()

	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // the first try may be slow to come
	defer cancel()
	_, err = unixTransport{}.Dial(ctx, addr, cfg)
	wantError(t, err, DeadlineExceeded, "dial", addr, "backlog is full")
	if ctx.Err() == nil {
		t.Error("Dial gave up before its context ended")
	}

	// Accepting makes room. That it starts later only makes the test harder.
	accepted := make(chan net.Conn, 2)
	time.AfterFunc(5*firstDialRetry, func() {
		for range cap(accepted) {
			if c, err := ln.Accept(); err == nil {
				accepted <- c
			}
		}
		close(accepted)
	})
	second, err := unixTransport{}.Dial(t.Context(), addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	n := 0
	for c := range accepted {
		n++
		c.Close()
	}
	if n != 2 {
		t.Errorf("%d connections accepted, want 2", n)
	}
}

func TestChildrenInheritNoDescriptorOfASocket(t *testing.T) {
	inheritable := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip("no /proc here:", err)
		}
		n := 0
		for _, e := range entries {
			fd, _ := strconv.Atoi(e.Name())
			if flags, _, e := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0); e == 0 && flags&syscall.FD_CLOEXEC == 0 {
				n++
			}
		}
		return n
	}
	before := inheritable()
	addr := "unix://" + filepath.Join(socketDir(t), "x.sock") // with a lock file
	ln := listenUnix(t, addr, nil)
	d, err := unixTransport{}.Dial(t.Context(), addr, new(Config).withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	a, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if after := inheritable(); after != before {
		t.Errorf("%d descriptors without close-on-exec before, %d after", before, after)
	}
}
