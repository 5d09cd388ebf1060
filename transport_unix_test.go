//go:build unix

package plugwire

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const childAddrEnv = "PLUGWIRE_TEST_ADDR"

func init() {
	children["unix-listen"] = listenUntilKilled
}

// listenUntilKilled is a child that serves a socket and never ends by itself.
func listenUntilKilled() {
	_, err := unixTransport{}.Listen(context.Background(), os.Getenv(childAddrEnv), new(Config).withDefaults())
	fmt.Println("listening:", err)
	if err == nil {
		os.Stdin.Read(make([]byte, 1)) // until the parent is gone
	}
}

// startListenChild starts a child that serves addr and returns when it does.
func startListenChild(t *testing.T, addr string) *exec.Cmd {
	t.Helper()
	cmd := childCommand("unix-listen", childAddrEnv+"="+addr)
	stdin, stdout := startChild(t, cmd)
	t.Cleanup(func() {
		stdin.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	if line, err := stdout.ReadString('\n'); line != "listening: <nil>\n" {
		t.Fatalf("the child says %q, %v", line, err)
	}
	return cmd
}

// socketDir returns a directory whose name leaves room for a socket's.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func listenUnix(t *testing.T, addr string, cfg *Config) *unixListener {
	t.Helper()
	ln, err := unixTransport{}.Listen(t.Context(), addr, cfg.withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.(*unixListener)
}

// makeStale leaves a socket at path that nobody listens on.
func makeStale(t *testing.T, path string) {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
}

// connects checks that addr leads to ln, in both directions.
func connects(t *testing.T, tr Transport, ln net.Listener, addr string) {
	t.Helper()
	d, err := tr.Dial(t.Context(), addr, new(Config).withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	a, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	buf := make([]byte, 4)
	for _, ends := range [][2]net.Conn{{d, a}, {a, d}} {
		if _, err := ends[0].Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		if n, err := ends[1].Read(buf); err != nil || string(buf[:n]) != "ping" {
			t.Fatalf("read %q, %v", buf[:n], err)
		}
	}
}

func absent(t *testing.T, paths ...string) {
	t.Helper()
	for _, p := range paths {
		if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v; want it gone", p, err)
		}
	}
}

func TestUnixSocketConnectsAndGoesAway(t *testing.T) {
	path := filepath.Join(socketDir(t), "x.sock")
	for _, form := range []string{"unix://" + path, "unix:" + path} {
		ln := listenUnix(t, form, nil)
		if got := addrURI(ln.Addr()); got != "unix://"+path {
			t.Errorf("the listener's address is %q", got)
		}
		connects(t, unixTransport{}, ln, form)
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
		if err := ln.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed twice: %v", err)
		}
		if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept after close: %v", err)
		}
		absent(t, path, path+".lock")
	}
}

func TestConnectionsOfUnixSocketsAreTheStandardLibrarys(t *testing.T) {
	ln := listenUnix(t, "unix:", nil)
	d, err := unixTransport{}.Dial(t.Context(), addrURI(ln.Addr()), new(Config).withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	a, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for _, c := range []net.Conn{d, a} {
		if _, ok := c.(*net.UnixConn); !ok {
			t.Errorf("got a %T", c)
		}
	}
}

func TestAutomaticSocketsAreInAPrivateDirectory(t *testing.T) {
	parent := socketDir(t)
	cfg := &Config{Unix: UnixConfig{Dir: parent}}
	one, two := listenUnix(t, "unix:", cfg), listenUnix(t, "unix://", cfg)
	if one.path == two.path || one.dir.path == two.dir.path {
		t.Errorf("not random: %s, %s", one.path, two.path)
	}
	if fi, err := os.Lstat(one.dir.path); err != nil || fi.Mode() != fs.ModeDir|0o700 || filepath.Dir(one.dir.path) != parent {
		t.Errorf("the directory %s: %v, %v", one.dir.path, fi.Mode(), err)
	}
	if fi, err := os.Lstat(one.path); err != nil || fi.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("the socket: %v, %v", fi.Mode(), err)
	}
	connects(t, unixTransport{}, one, addrURI(one.Addr()))
	if err := errors.Join(one.Close(), two.Close()); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestAutomaticSocketsNeedADirectoryThatExistsAndIsShort(t *testing.T) {
	missing := filepath.Join(socketDir(t), "missing")
	_, err := unixTransport{}.Listen(t.Context(), "unix:", (&Config{Unix: UnixConfig{Dir: missing}}).withDefaults())
	wantError(t, err, NotFound, "listen", "unix:", missing)
	if runtime.GOOS == "linux" {
		return
	}
	_, err = unixTransport{}.Listen(t.Context(), "unix:",
		(&Config{Unix: UnixConfig{Dir: "/" + strings.Repeat("d", 100)}}).withDefaults())
	wantError(t, err, InvalidArgument, "listen", "unix:", fmt.Sprint(maxUnixPath), "Config.Unix.Dir")
}

func TestUnixPathsAreCheckedFirst(t *testing.T) {
	want := map[string]int{"linux": 107, "android": 107, "darwin": 103, "freebsd": 103, "openbsd": 103, "netbsd": 103}
	if n, ok := want[runtime.GOOS]; ok && n != maxUnixPath {
		t.Errorf("the limit is %d, want %d", maxUnixPath, n)
	}
	dir := socketDir(t)
	fits := dir + "/" + strings.Repeat("x", maxUnixPath-len(dir)-1)
	ln := listenUnix(t, "unix://"+fits, nil)
	connects(t, unixTransport{}, ln, "unix://"+fits)

	cfg := new(Config).withDefaults()
	for path, part := range map[string]string{
		fits + "y":    fmt.Sprintf("%d bytes, a socket address holds at most %d", maxUnixPath+1, maxUnixPath),
		"tmp/x.sock":  "not absolute",
		"@abstract":   "not absolute",
		"/tmp/a\x00b": "NUL",
	} {
		_, err := unixTransport{}.Listen(t.Context(), "unix://"+path, cfg)
		wantError(t, err, InvalidArgument, "listen", "unix://"+path, part)
		_, err = unixTransport{}.Dial(t.Context(), "unix://"+path, cfg)
		wantError(t, err, InvalidArgument, "dial", "unix://"+path, part)
	}
	_, err := unixTransport{}.Dial(t.Context(), "unix:", cfg)
	wantError(t, err, InvalidArgument, "dial", "unix:", "no path")
}

func TestT06SocketOfAKilledServerIsTakenOver(t *testing.T) {
	path := filepath.Join(socketDir(t), "x.sock")
	addr := "unix://" + path
	cmd := startListenChild(t, addr)
	_, err := unixTransport{}.Listen(t.Context(), addr, new(Config).withDefaults())
	wantError(t, err, AlreadyExists, "listen", addr, "another server is listening there")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal("the killed child left no socket:", err)
	}
	_, err = unixTransport{}.Dial(t.Context(), addr, new(Config).withDefaults())
	wantError(t, err, Unavailable, "dial", addr, "gone")
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the cause of %v is not ECONNREFUSED", err)
	}
	ln := listenUnix(t, addr, nil)
	connects(t, unixTransport{}, ln, addr)
}

// From the killed process's end on: how long the kernel takes to end it is a
// matter of how busy the machine is.
func TestT06ListeningAgainSoonAfterKill(t *testing.T) {
	const within = 100 * time.Millisecond
	addr := "unix://" + filepath.Join(socketDir(t), "x.sock")
	soon, kills := 0, longRun(15, 100)
	var slowest, slowestKill time.Duration
	for range kills {
		cmd := startListenChild(t, addr)
		killed := time.Now()
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		ended := time.Now()
		ln, err := unixTransport{}.Listen(t.Context(), addr, new(Config).withDefaults())
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(ended)
		if took <= within {
			soon++
		}
		slowest, slowestKill = max(slowest, took), max(slowestKill, time.Since(killed))
		connects(t, unixTransport{}, ln, addr)
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d of %d within %v of the end, the slowest after %v; of the signal after %v", soon, kills, within, slowest, slowestKill)
	if soon != kills {
		t.Errorf("%d of %d took longer than %v", kills-soon, kills, within)
	}
}

func TestT04SymbolicLinksAreNotFollowed(t *testing.T) {
	dir := socketDir(t)
	in := func(name string) string { return filepath.Join(dir, name) }
	live := listenUnix(t, "unix://"+in("live"), nil)
	if err := errors.Join(os.Symlink(in("nowhere"), in("dangling")), os.Symlink(in("live"), in("link")),
		os.Symlink(dir, in("dir"))); err != nil {
		t.Fatal(err)
	}
	cfg := new(Config).withDefaults()
	for _, name := range []string{"dangling", "link"} {
		addr := "unix://" + in(name)
		c, err := unixTransport{}.Dial(t.Context(), addr, cfg)
		if err == nil {
			c.Close()
		}
		wantError(t, err, FailedPrecondition, "dial", addr, "a symbolic link")
		_, err = unixTransport{}.Listen(t.Context(), addr, cfg)
		wantError(t, err, AlreadyExists, "listen", addr, "a symbolic link")
		if fi, err := os.Lstat(in(name)); err != nil || fi.Mode().Type() != fs.ModeSymlink {
			t.Errorf("%s: %v, %v; want it to survive", name, fi, err)
		}
		absent(t, in(name)+".lock")
	}
	absent(t, in("nowhere"))
	connects(t, unixTransport{}, live, "unix://"+in("dir/live")) // /var/run is one
}

func TestT05LiveSocketIsNotStolen(t *testing.T) {
	path := filepath.Join(socketDir(t), "x.sock")
	addr := "unix://" + path
	foreign, err := net.Listen("unix", path) // it knows nothing of the lock
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	for range 3 {
		ln, err := unixTransport{}.Listen(t.Context(), addr, new(Config).withDefaults())
		if err == nil {
			ln.Close()
			t.Fatal("stolen")
		}
		wantError(t, err, AlreadyExists, "listen", addr, "another server is listening there")
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("the cause of %v is not EADDRINUSE", err)
		}
		c, err := foreign.Accept() // the attempt to connect
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		absent(t, path+".lock")
	}
	connects(t, unixTransport{}, foreign, addr)
}

// Before listen a socket refuses connections like a dead one, and so does one
// with a full backlog on most systems. Only the lock tells.
func TestT05SocketOfAServerThatCannotAnswerYetIsNotStolen(t *testing.T) {
	path := filepath.Join(socketDir(t), "x.sock")
	addr := "unix://" + path
	lock, err := claimPath(t.Context(), addr, path)
	if err != nil {
		t.Fatal(err)
	}
	makeStale(t, path)
	_, err = unixTransport{}.Listen(t.Context(), addr, new(Config).withDefaults())
	wantError(t, err, AlreadyExists, "listen", addr, "another server is listening there")
	if err := lock.Release(); err != nil {
		t.Error(err)
	}
	listenUnix(t, addr, nil)
}

func TestT05OfTwoServersThatStartTogetherOneWins(t *testing.T) {
	path := filepath.Join(socketDir(t), "x.sock")
	addr := "unix://" + path
	cfg := new(Config).withDefaults()
	for i := range 100 {
		if i%2 == 0 {
			makeStale(t, path)
		}
		var lns [2]net.Listener
		var errs [2]error
		var wg sync.WaitGroup
		start := make(chan struct{})
		for j := range lns {
			wg.Go(func() {
				<-start
				lns[j], errs[j] = unixTransport{}.Listen(t.Context(), addr, cfg)
			})
		}
		close(start)
		wg.Wait()
		winner, loser := 0, 1
		if errs[0] != nil {
			winner, loser = 1, 0
		}
		if errs[winner] != nil || errs[loser] == nil {
			t.Fatalf("try %d: %v, %v; want one winner", i, errs[0], errs[1])
		}
		wantError(t, errs[loser], AlreadyExists, "listen", addr, "another server is listening there")
		connects(t, unixTransport{}, lns[winner], addr)
		if err := lns[winner].Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestT05WhatIsNoStaleSocketOfOursSurvives(t *testing.T) {
	dir := socketDir(t)
	in := func(name string) string { return filepath.Join(dir, name) }
	makeStale(t, in("stale"))
	dgram, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: in("dgram"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer dgram.Close()
	if err := errors.Join(
		os.WriteFile(in("file"), []byte("mine"), 0o600),
		os.Mkdir(in("dir"), 0o700),
		os.Symlink(in("nowhere"), in("dangling")),
		os.Symlink(in("stale"), in("link")),
	); err != nil {
		t.Fatal(err)
	}
	for name, part := range map[string]string{"file": "a regular file", "dir": "a directory",
		"dangling": "a symbolic link", "link": "a symbolic link", "dgram": "another server"} {
		before, err := os.Lstat(in(name))
		if err != nil {
			t.Fatal(err)
		}
		addr := "unix://" + in(name)
		_, err = unixTransport{}.Listen(t.Context(), addr, new(Config).withDefaults())
		wantError(t, err, AlreadyExists, "listen", addr, part)
		if after, err := os.Lstat(in(name)); err != nil || !os.SameFile(before, after) {
			t.Errorf("%s did not survive: %v", name, err)
		}
		absent(t, in(name)+".lock")
		if name != "dgram" {
			_, err = unixTransport{}.Dial(t.Context(), addr, new(Config).withDefaults())
			wantError(t, err, FailedPrecondition, "dial", addr, part)
		}
	}
	absent(t, in("nowhere"))
	if _, err := os.Lstat(in("stale")); err != nil {
		t.Error("a link's target is gone:", err)
	}
	if b, err := os.ReadFile(in("file")); string(b) != "mine" {
		t.Errorf("the file has %q, %v", b, err)
	}
}

func TestT05AnotherUsersStaleSocketSurvives(t *testing.T) {
	path := filepath.Join(socketDir(t), "x.sock")
	makeStale(t, path)
	if err := os.Lchown(path, os.Geteuid()+1, -1); err != nil {
		t.Skip("only root can give a file away:", err)
	}
	_, err := unixTransport{}.Listen(t.Context(), "unix://"+path, new(Config).withDefaults())
	wantError(t, err, PermissionDenied, "listen", "unix://"+path, "another user")
	if _, err := os.Lstat(path); err != nil {
		t.Error("it is gone:", err)
	}
}

func TestCloseRemovesOnlyWhatListenMade(t *testing.T) {
	dir := socketDir(t)
	path := filepath.Join(dir, "x.sock")
	ln := listenUnix(t, "unix://"+path, nil)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	makeStale(t, path)
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error("somebody else's socket is gone:", err)
	}

	// In the private directory: neither the file nor, so, the directory.
	ln = listenUnix(t, "unix:", &Config{Unix: UnixConfig{Dir: dir}})
	if err := errors.Join(os.Remove(ln.path), os.WriteFile(ln.path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := ln.Close(); !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, syscall.EEXIST) {
		t.Errorf("Close: %v; want it to say that the directory is not empty", err)
	}
	if _, err := os.Lstat(ln.path); err != nil {
		t.Error("somebody else's file is gone:", err)
	}
}

func TestTheDirectoryMayVanish(t *testing.T) {
	dir := filepath.Join(socketDir(t), "d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	named := listenUnix(t, "unix://"+dir+"/x.sock", nil)
	auto := listenUnix(t, "unix:", &Config{Unix: UnixConfig{Dir: dir}})
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(named.Close(), auto.Close()); err != nil {
		t.Error(err)
	}
	addr := "unix://" + dir + "/x.sock"
	_, err := unixTransport{}.Dial(t.Context(), addr, new(Config).withDefaults())
	wantError(t, err, Unavailable, "dial", addr, "is it running")
	_, err = unixTransport{}.Listen(t.Context(), addr, new(Config).withDefaults())
	wantError(t, err, NotFound, "listen", addr, "must exist")
}

func TestWhatFailsLeavesNoDescriptors(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which would close what was forgotten
	dir := socketDir(t)
	live := filepath.Join(dir, "live")
	listenUnix(t, "unix://"+live, nil)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := openDescriptors()
	for _, addr := range []string{"unix://" + live, "unix://" + file, "unix://" + file + "/x", "unix://" + dir + "/no/x"} {
		for range 5 {
			if _, err := (unixTransport{}).Listen(t.Context(), addr, new(Config).withDefaults()); err == nil {
				t.Errorf("listening at %s", addr)
			}
			if addr == "unix://"+live {
				continue
			}
			if _, err := (unixTransport{}).Dial(t.Context(), addr, new(Config).withDefaults()); err == nil {
				t.Errorf("connected to %s", addr)
			}
		}
	}
	if after := openDescriptors(); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func TestListenAndDialObserveTheirContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	path := filepath.Join(socketDir(t), "x.sock")
	addr := "unix://" + path
	ln := listenUnix(t, addr, nil)
	cancel()
	_, err := unixTransport{}.Dial(ctx, addr, new(Config).withDefaults())
	wantError(t, err, Canceled, "dial", addr)
	ln.Close()
	_, err = unixTransport{}.Listen(ctx, addr, new(Config).withDefaults())
	wantError(t, err, Canceled, "listen", addr)
	absent(t, path, path+".lock")
}
