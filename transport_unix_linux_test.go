package plugwire

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	childUmaskEnv   = "PLUGWIRE_TEST_UMASK"
	childModeEnv    = "PLUGWIRE_TEST_MODE"
	childListensEnv = "PLUGWIRE_TEST_LISTENS"
)

func init() {
	children["unix-modes"] = watchModes
	children["unix-no-proc"] = withoutProc
}

// watchModes is a child that listens and closes many times under some umask,
// while one thread looks at the socket's mode and, if it runs as root, another
// that has become a different user tries to connect. It prints what they saw.
func watchModes() {
	mask, _ := strconv.ParseUint(os.Getenv(childUmaskEnv), 8, 32)
	mode, _ := strconv.ParseUint(os.Getenv(childModeEnv), 8, 32)
	listens, _ := strconv.Atoi(os.Getenv(childListensEnv))
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
			if err := becomeNobody(); err != nil {
				fmt.Println(err)
				return
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
	for range listens {
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

const nobody = 65534

// becomeNobody makes the goroutine's thread, which ends with it, another user.
func becomeNobody() error {
	runtime.LockOSThread() // never unlocked
	for _, call := range [][4]uintptr{
		{unix.SYS_SETGROUPS, 0, 0, 0},
		{unix.SYS_SETRESGID, nobody, nobody, nobody},
		{unix.SYS_SETRESUID, nobody, nobody, nobody},
	} {
		if _, _, e := syscall.RawSyscall(call[0], call[1], call[2], call[3]); e != 0 {
			return fmt.Errorf("system call %v: %w", call, e)
		}
	}
	return nil
}

// asNobody runs f as another user, or skips the test.
func asNobody(t *testing.T, f func() error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	done := make(chan error)
	go func() {
		err := becomeNobody()
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// runWatchModes runs the child and returns the modes after Listen, those seen at
// any time, and whether the other user tried and got in.
func runWatchModes(t *testing.T, umask, mode string, listens int) (last, seen map[string]int, tries, connected int) {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "pw") // making files on a disk can take milliseconds
	if err != nil {
		dir = socketDir(t)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // only the socket's mode protects it
		t.Fatal(err)
	}
	cmd := childCommand("unix-modes", childUmaskEnv+"="+umask, childModeEnv+"="+mode,
		childListensEnv+"="+strconv.Itoa(listens), childAddrEnv+"=unix://"+filepath.Join(dir, "x"))
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

func TestT02NobodyConnectsBeforeTheModeIsRight(t *testing.T) {
	listens := 500
	if longTests {
		listens = 10_000
	}
	for _, c := range []struct {
		umask, mode, last string
		seen              []string
		listens           int
	}{
		{"0", "600", "Srw-------", []string{"Srw-------"}, listens},
		{"22", "600", "Srw-------", []string{"Srw-------"}, 100},
		{"77", "660", "Srw-rw----", []string{"Srw-------", "Srw-rw----"}, 100}, // never more than asked for
	} {
		t.Run("umask "+c.umask+" mode "+c.mode, func(t *testing.T) {
			last, seen, tries, connected := runWatchModes(t, c.umask, c.mode, c.listens)
			if len(last) != 1 || last[c.last] != c.listens {
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
			default:
				t.Logf("%d listens, another user tried %d times, and got in %d times", c.listens, tries, connected)
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
	t.Parallel()
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

	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond) // the first try may be slow to come
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

func TestT21ChildrenInheritNoDescriptorOfASocket(t *testing.T) {
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
	fd, err := newUnixSocket(0o600) // those that are open only meanwhile
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	f, err := openSocketFile(addr[len("unix://"):])
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	if after := inheritable(); after != before {
		t.Errorf("%d descriptors without close-on-exec before, %d after", before, after)
	}
}

// longDir makes directories below a new one and returns the last, whose path is
// at least n bytes long.
func longDir(t *testing.T, n int) string {
	t.Helper()
	dir := socketDir(t)
	for len(dir) < n {
		dir += "/" + strings.Repeat("d", min(200, n-len(dir)))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestPathsMayBeLongerThanASocketAddress(t *testing.T) {
	dir := longDir(t, 3000)
	path := dir + "/" + strings.Repeat("x", maxLongName)
	addr := "unix://" + path
	short := socketDir(t) + "/l"
	if err := os.Symlink(dir, short); err != nil {
		t.Fatal(err)
	}
	viaLink := short + "/" + filepath.Base(path)
	for _, stale := range []bool{false, true} {
		ln := listenUnix(t, addr, &Config{Unix: UnixConfig{BufferSize: testBuffer}})
		if got := addrURI(ln.Addr()); got != addr {
			t.Errorf("the listener's address is %s", got)
		}
		_, err := unixTransport{}.Listen(t.Context(), addr, new(Config).withDefaults())
		wantError(t, err, AlreadyExists, "listen", addr, "another server is listening there")
		connects(t, unixTransport{}, ln, addr)
		for _, dialled := range []string{path, viaLink} {
			d, err := unixTransport{}.Dial(t.Context(), "unix://"+dialled, (&Config{Unix: UnixConfig{BufferSize: testBuffer}}).withDefaults())
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			a, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			if d.RemoteAddr().String() != dialled || a.LocalAddr().String() != path {
				t.Errorf("connected to %v, accepted at %v", d.RemoteAddr(), a.LocalAddr())
			}
			for _, c := range []net.Conn{d, a} {
				wantBuffers(t, c, kernelSize(testBuffer), kernelSize(testBuffer))
				if _, ok := c.(interface{ CloseWrite() error }); !ok {
					t.Errorf("%T has no CloseWrite", c)
				}
			}
		}
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
		absent(t, path, path+".lock")
		if !stale {
			cmd := startListenChild(t, addr)
			cmd.Process.Kill()
			cmd.Wait()
			if _, err := os.Lstat(path); err != nil {
				t.Fatal("the killed child left no socket:", err)
			}
		}
	}
	t.Run("automatic", func(t *testing.T) {
		s := &Server{Mux: echoMux(nil), Config: &Config{Unix: UnixConfig{Dir: dir}}}
		ln, err := s.Listen("unix:")
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(ln) }()
		defer func() { s.Close(); <-ended }()
		c := dial(t, addrURI(ln.Addr()), nil)
		if reply, err := c.Call(t.Context(), "echo", []byte("hi")); err != nil || string(reply) != "hi" {
			t.Errorf("%q, %v", reply, err)
		}
	})
	t.Run("but not than the file system allows", func(t *testing.T) {
		addr := "unix://" + dir + strings.Repeat("/dir", 300) + "/x"
		_, err := unixTransport{}.Listen(t.Context(), addr, new(Config).withDefaults())
		wantError(t, err, InvalidArgument, "listen", addr, "file name too long")
		_, err = unixTransport{}.Dial(t.Context(), addr, new(Config).withDefaults())
		wantError(t, err, InvalidArgument, "dial", addr, "file name too long")
	})
}

// withoutProc is a child whose root directory is empty but for a long path.
func withoutProc() {
	must(syscall.Chroot(os.Getenv(childAddrEnv)))
	must(os.Chdir("/"))
	long := "/" + strings.Repeat("d", 120)
	must(os.Mkdir(long, 0o700))
	must(os.Symlink("/x", "/link"))
	ctx, cfg := context.Background(), new(Config).withDefaults()
	tr := unixTransport{}
	ln, err := tr.Listen(ctx, "unix:///x", cfg)
	must(err)
	c, err := tr.Dial(ctx, "unix:///x", cfg)
	must(err)
	fmt.Println(c.RemoteAddr())
	c.Close()
	_, err = tr.Dial(ctx, "unix:///link", cfg)
	fmt.Println(err)
	_, err = tr.Listen(ctx, "unix://"+long+"/x", cfg)
	fmt.Println(err)
	must(ln.Close())
}

func TestWithoutProcOnlyLongPathsFail(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can have another root directory")
	}
	dir := socketDir(t)
	cmd := childCommand("unix-no-proc", childAddrEnv+"="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	lines := strings.Split(string(out), "\n")
	for i, part := range []string{"/x", "there is a symbolic link at the path", "without /proc a path may have 107 bytes"} {
		if i >= len(lines) || !strings.Contains(lines[i], part) {
			t.Errorf("line %d does not say %q:\n%s", i, part, out)
		}
	}
}

func TestTheGroupOfASocketIsRightBeforeAnybodyConnects(t *testing.T) {
	dir := socketDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "x.sock")
	cfg := (&Config{Unix: UnixConfig{Mode: 0o660, Group: nobody}}).withDefaults()
	if os.Geteuid() != 0 {
		cfg.Unix.Group = nobody + 1
		_, err := unixTransport{}.Listen(t.Context(), "unix://"+path, cfg)
		wantError(t, err, PermissionDenied, "listen", "unix://"+path, "Config.Unix.Group")
		absent(t, path, path+".lock")
		t.Skip("only root can give a socket to any group")
	}
	for _, mask := range []int{0, 0o77} { // with the second the bits come later
		before := syscall.Umask(mask)
		ln, err := unixTransport{}.Listen(t.Context(), "unix://"+path, cfg)
		syscall.Umask(before)
		if err != nil {
			t.Fatal(err)
		}
		fi, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st := fi.Sys().(*syscall.Stat_t); st.Gid != nobody || st.Uid != 0 || fi.Mode().Perm() != 0o660 {
			t.Errorf("the socket has uid %d, gid %d, %v", st.Uid, st.Gid, fi.Mode())
		}
		asNobody(t, func() error {
			c, err := net.Dial("unix", path)
			if err == nil {
				c.Close()
			}
			return err
		})
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
	}
	ln := listenUnix(t, "unix://"+path, &Config{Unix: UnixConfig{Mode: 0o660, Group: nobody + 1}})
	defer ln.Close()
	asNobody(t, func() error {
		if c, err := net.Dial("unix", path); !errors.Is(err, fs.ErrPermission) {
			if err == nil {
				c.Close()
			}
			return fmt.Errorf("who is not in the group connects: %v", err)
		}
		return nil
	})
}
