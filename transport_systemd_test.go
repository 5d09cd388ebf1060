//go:build unix

package plugwire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const childUIDEnv = "PLUGWIRE_TEST_UID"

func init() {
	children["activated"] = serveActivated
}

// serveActivated is a child that listens at each of the addresses in
// childAddrEnv, an "!" behind one meaning Config.TCP.Insecure, serves what it
// got until its stdin ends, and prints all that a test wants to know.
func serveActivated() {
	if uid, err := strconv.Atoi(os.Getenv(childUIDEnv)); err == nil {
		must(errors.Join(syscall.Setgroups(nil), syscall.Setgid(uid), syscall.Setuid(uid)))
	}
	count, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	var servers []*Server
	for word := range strings.FieldsSeq(os.Getenv(childAddrEnv)) {
		addr, insecure := strings.CutSuffix(word, "!")
		s := &Server{Mux: echoMux(nil), Config: &Config{TCP: TCPConfig{Insecure: insecure, KeepAlive: -1}}}
		ln, err := s.Listen(addr)
		var e *Error
		switch {
		case err == nil:
			fmt.Printf("%s is %s\n", addr, addrURI(ln.Addr()))
			servers = append(servers, s)
			go s.Serve(ln)
		case errors.As(err, &e) && e.Op == "listen" && e.Addr == addr:
			fmt.Println(e.Code, err)
		default:
			fmt.Println("not typed as it should be:", err)
		}
	}
	var left []string
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "LISTEN_") {
			left = append(left, v)
		}
	}
	inherited := 0
	for fd := range min(count, 32) {
		if flags, err := unix.FcntlInt(uintptr(firstPassedFD+fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			inherited++
		}
	}
	fmt.Println("left", left, "inherited", inherited)
	io.Copy(io.Discard, os.Stdin)
	for _, s := range servers {
		s.Close()
	}
}

// activate starts a child with sockets as systemd does, and returns what it
// prints, a line for each of addrs and one for what is left; its end is awaited
// when the test ends, or by stop.
func activate(t *testing.T, addrs, names string, sockets []*os.File, env ...string) (lines []string, stop func()) {
	t.Helper()
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("no shell that could set LISTEN_PID:", err)
	}
	cmd := childCommand("activated", childAddrEnv+"="+addrs, "LISTEN_FDS="+strconv.Itoa(len(sockets)))
	cmd.Path, cmd.Args = sh, []string{sh, "-c", `LISTEN_PID=${LISTEN_PID-$$} exec "$0"`, os.Args[0]}
	cmd.ExtraFiles = sockets
	if names != "" {
		cmd.Env = append(cmd.Env, "LISTEN_FDNAMES="+names)
	}
	cmd.Env = append(cmd.Env, env...)
	stdin, stdout := startChild(t, cmd)
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			stdin.Close()
			if err := cmd.Wait(); err != nil {
				t.Errorf("the child: %v", err)
			}
		}
	}
	t.Cleanup(stop)
	for range len(strings.Fields(addrs)) + 1 {
		line, err := stdout.ReadString('\n')
		if err != nil {
			t.Fatalf("the child says %q and %q, %v", lines, line, err)
		}
		lines = append(lines, strings.TrimSuffix(line, "\n"))
	}
	return lines, stop
}

type fileCloser interface {
	File() (*os.File, error)
	Close() error
}

// passed returns sockets as a service manager makes them, and their addresses.
func passed(t *testing.T, addrs ...string) (files []*os.File, uris []string) {
	t.Helper()
	for _, addr := range addrs {
		network, at, _ := strings.Cut(addr, ":")
		var s fileCloser
		var uri string
		if network == "unixgram" {
			c, err := net.ListenUnixgram(network, &net.UnixAddr{Name: at, Net: network})
			if err != nil {
				t.Fatal(err)
			}
			s = c
		} else {
			ln, err := net.Listen(network, at)
			if err != nil {
				t.Fatal(err)
			}
			if u, ok := ln.(*net.UnixListener); ok {
				u.SetUnlinkOnClose(false)
			}
			s, uri = ln.(fileCloser), addrURI(ln.Addr())
		}
		f, err := s.File()
		if err := errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		files, uris = append(files, f), append(uris, uri)
	}
	return files, uris
}

// says checks the lines of a child, of which each must have its parts, given
// with "|" between them.
func saysWhy(t *testing.T, lines []string, want ...string) {
	t.Helper()
	for i, parts := range want {
		for part := range strings.SplitSeq(parts, "|") {
			if !strings.Contains(lines[i], part) {
				t.Errorf("line %d is %q; want %q", i+1, lines[i], part)
			}
		}
	}
}

const nothingLeft = "left [] inherited 0"

func echoes(t *testing.T, addr string) {
	t.Helper()
	c := dial(t, addr, nil)
	if reply, err := c.Call(t.Context(), "echo", []byte("hi")); err != nil || string(reply) != "hi" {
		t.Errorf("%s: %q, %v", addr, reply, err)
	}
}

func TestActivationWithTheOnlySocket(t *testing.T) {
	path := filepath.Join(socketDir(t), "x.sock")
	for _, addr := range []string{"unix:" + path, "tcp:127.0.0.1:0"} {
		files, uris := passed(t, addr)
		lines, stop := activate(t, "systemd: systemd: systemd:unknown", "", files)
		saysWhy(t, lines, "is "+uris[0], "FailedPrecondition|taken already", "FailedPrecondition|taken already", nothingLeft)
		echoes(t, uris[0])
		stop()
		if strings.HasPrefix(addr, "unix") {
			if _, err := os.Lstat(path); err != nil {
				t.Error("the socket's file is gone:", err)
			}
		}
		// As after a crash: the service manager still has the socket.
		lines, _ = activate(t, "systemd:", "", files)
		saysWhy(t, lines, "is "+uris[0], nothingLeft)
		echoes(t, uris[0])
	}
}

func TestActivationByName(t *testing.T) {
	dir := socketDir(t)
	files, uris := passed(t, "unix:"+dir+"/a", "tcp:127.0.0.1:0", "unix:"+dir+"/c", "unix:"+dir+"/d")
	lines, _ := activate(t, "systemd:web systemd:a systemd: systemd:twice systemd:no", "a:web:twice:twice", files)
	saysWhy(t, lines, "is "+uris[1], "is "+uris[0],
		`InvalidArgument|4 sockets were passed|write "systemd:NAME"|["a" "web" "twice" "twice"]`,
		"InvalidArgument|2 sockets of this name", "NotFound|no socket of this name", nothingLeft)
	echoes(t, uris[0])
	echoes(t, uris[1])
}

func TestActivationTakesOnlyListeningStreamSockets(t *testing.T) {
	files, _ := passed(t, "unixgram:"+socketDir(t)+"/x")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	ends, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range ends {
		f := os.NewFile(uintptr(fd), "end")
		defer f.Close()
		files = append(files, f)
	}
	lines, _ := activate(t, "systemd:dgram systemd:pipe systemd:connected", "dgram:connected:other:pipe", append(files, r))
	saysWhy(t, lines, slices.Repeat([]string{"FailedPrecondition|no listening stream socket|Accept=no"}, 3)...)
	saysWhy(t, lines[3:], nothingLeft)
}

func TestActivationBeyondLoopbackIsRefused(t *testing.T) {
	files, uris := passed(t, "tcp:0.0.0.0:0")
	lines, _ := activate(t, "systemd: systemd:!", "", files)
	saysWhy(t, lines, "PermissionDenied|not a loopback address|Config.TCP.Insecure", "is tcp://", nothingLeft)
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(uris[0], "tcp://"))
	echoes(t, "tcp://127.0.0.1:"+port)
}

func TestActivationOfAnotherProcessIsNotOurs(t *testing.T) {
	files, _ := passed(t, "tcp:127.0.0.1:0")
	for _, c := range []struct{ env, want string }{
		{"LISTEN_PID=1", "passed to another process: LISTEN_PID is \"1\""},
		{"LISTEN_PID=", "are not set"},
		{"LISTEN_FDS=", "are not set"},
		{"LISTEN_FDS=0", `LISTEN_FDS is "0"`},
		{"LISTEN_FDS=-1", `LISTEN_FDS is "-1"`},
		{"LISTEN_FDS=2000000000", "descriptor"},
		{"LISTEN_FDNAMES=a:b", "has 2 names, LISTEN_FDS is 1"},
	} {
		lines, _ := activate(t, "systemd: systemd:", "", files, c.env)
		saysWhy(t, lines, "FailedPrecondition|"+c.want, "FailedPrecondition|"+c.want, "left []")
	}
}

func TestActivatedSocketsCannotBeDialledOrChosen(t *testing.T) {
	_, err := Dial(t.Context(), "systemd:x", nil)
	wantError(t, err, InvalidArgument, "dial", "systemd:x", "can only be listened on", "ListenStream=")
	if slices.Contains(Transports(), "systemd") {
		t.Errorf("it is among %q", Transports())
	}
	_, err = (&Server{Mux: emptyMux, Config: &Config{Transports: []string{"unix"}}}).Listen("systemd:")
	wantError(t, err, PermissionDenied, "listen", "systemd:", "Config.Transports")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = systemdTransport{}.Listen(ctx, "systemd:", new(Config).withDefaults())
	wantError(t, err, Canceled, "listen", "systemd:")
}

func TestPassedSocketsGetTheSettingsOfTheirTransport(t *testing.T) {
	cfg := (&Config{Unix: UnixConfig{BufferSize: testBuffer}, TCP: TCPConfig{BufferSize: testBuffer, KeepAlive: -1, Delay: true}}).withDefaults()
	files, uris := passed(t, "unix:"+socketDir(t)+"/x", "tcp:127.0.0.1:0")
	for i, f := range files {
		ln, err := (&passedSocket{fd: int(f.Fd()), file: f}).listener("systemd:", cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		tr, err := cfg.transportOf("dial", uris[i])
		if err != nil {
			t.Fatal(err)
		}
		d, err := tr.Dial(t.Context(), uris[i], cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		a, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		for _, what := range []struct{ level, opt int }{{syscall.SOL_SOCKET, syscall.SO_SNDBUF}, {syscall.SOL_SOCKET, syscall.SO_RCVBUF},
			{syscall.SOL_SOCKET, syscall.SO_KEEPALIVE}} {
			if is, want := sockopt(t, a, what.level, what.opt), sockopt(t, d, what.level, what.opt); is != want {
				t.Errorf("%s: option %#x is %d, of the dialler %d", uris[i], what.opt, is, want)
			}
		}
	}
}
