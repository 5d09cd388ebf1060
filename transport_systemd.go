//go:build unix

package plugwire

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// systemdTransport listens on the stream sockets that this process was started
// with, as systemd starts a service for a socket unit: "systemd:" is the only
// one, "systemd:NAME" the one whose FileDescriptorName= is NAME.
// The protocol is that of sd_listen_fds(3).
//
// It is no transport to choose: nothing can be dialled by this scheme.
type systemdTransport struct{}

func init() { builtinTransports["systemd"] = systemdTransport{} }

const firstPassedFD = 3

// A passedSocket is one that this process was started with.
type passedSocket struct {
	name string
	fd   int
	file *os.File // nil once it has been taken
}

// passedSockets are read from the environment once.
var passedSockets struct {
	mu   sync.Mutex
	read bool
	all  []*passedSocket
	err  error // why there are none
}

// readPassed finds what was passed to this process. Whatever it finds, the
// variables go away, so that no child takes them for its own, and the
// descriptors are not inherited.
func readPassed() ([]*passedSocket, error) {
	pid, n := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	names, named := os.LookupEnv("LISTEN_FDNAMES")
	for _, v := range []string{"LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(v)
	}
	if pid == "" || n == "" {
		return nil, errors.New("no sockets were passed to this process: LISTEN_PID and LISTEN_FDS are not set")
	}
	if pid != strconv.Itoa(os.Getpid()) {
		return nil, fmt.Errorf("the sockets were passed to another process: LISTEN_PID is %q, this is %d", pid, os.Getpid())
	}
	count, err := strconv.Atoi(n)
	if err != nil || count < 1 {
		return nil, fmt.Errorf("LISTEN_FDS is %q, which is no number of sockets", n)
	}
	for i := range count {
		if _, err := unix.FcntlInt(uintptr(firstPassedFD+i), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return nil, fmt.Errorf("LISTEN_FDS is %d, but descriptor %d: %w", count, firstPassedFD+i, err)
		}
	}
	list := strings.Split(names, ":")
	switch {
	case !named:
		list = slices.Repeat([]string{"unknown"}, count)
	case len(list) != count:
		return nil, fmt.Errorf("LISTEN_FDNAMES has %d names, LISTEN_FDS is %d", len(list), count)
	}
	all := make([]*passedSocket, count)
	for i := range all {
		fd := firstPassedFD + i
		all[i] = &passedSocket{name: list[i], fd: fd, file: os.NewFile(uintptr(fd), "passed socket")}
	}
	return all, nil
}

// Listen takes a socket; each can be taken once. Closing the listener leaves the
// file of a Unix socket where it is: it belongs to who made it.
func (systemdTransport) Listen(ctx context.Context, addr string, cfg *Config) (net.Listener, error) {
	if err := ctx.Err(); err != nil {
		return nil, sysError("listen", addr, err, "")
	}
	p := &passedSockets
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.read {
		p.read = true
		p.all, p.err = readPassed()
	}
	if p.err != nil {
		return nil, &Error{Code: FailedPrecondition, Op: "listen", Addr: addr, Err: p.err,
			Hint: "start this program, itself or by exec, as the service of a systemd socket unit"}
	}
	s, err := findPassed(addr, p.all)
	if err != nil {
		return nil, err
	}
	ln, err := s.listener(addr, cfg)
	if err != nil {
		return nil, sysError("listen", addr, err, "")
	}
	s.file.Close() // the listener has a duplicate
	s.file = nil
	return ln, nil
}

// Dial fails.
func (systemdTransport) Dial(_ context.Context, addr string, _ *Config) (net.Conn, error) {
	return nil, &Error{Code: InvalidArgument, Op: "dial", Addr: addr, Message: "a passed socket can only be listened on",
		Hint: `dial what the socket unit has as ListenStream=, as "unix:///path" or "tcp://host:port"`}
}

// findPassed returns the socket that addr means.
func findPassed(addr string, all []*passedSocket) (*passedSocket, error) {
	name := strings.TrimPrefix(addr, "systemd:")
	var names []string
	var found []*passedSocket
	for _, s := range all {
		names = append(names, s.name)
		if name == "" || s.name == name {
			found = append(found, s)
		}
	}
	fail := func(code Code, message, hint string) (*passedSocket, error) {
		return nil, &Error{Code: code, Op: "listen", Addr: addr, Message: message, Hint: hint}
	}
	passed := fmt.Sprintf("passed are %q; FileDescriptorName= in the socket unit names them", names)
	switch {
	case len(found) == 0:
		return fail(NotFound, "no socket of this name was passed", passed)
	case len(found) > 1 && name == "":
		return fail(InvalidArgument, fmt.Sprintf("%d sockets were passed", len(found)), `write "systemd:NAME"; `+passed)
	case len(found) > 1:
		return fail(InvalidArgument, fmt.Sprintf("%d sockets of this name were passed", len(found)), passed)
	case found[0].file == nil:
		return fail(FailedPrecondition, "this socket has been taken already", "")
	}
	return found[0], nil
}

// listener returns a listener on a duplicate of the descriptor, which keeps the
// promises of the transport that the socket is of.
func (s *passedSocket) listener(addr string, cfg *Config) (net.Listener, error) {
	kind, err1 := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_TYPE)
	listening, err2 := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err := cmp.Or(err1, err2); err != nil || kind != unix.SOCK_STREAM || listening == 0 {
		return nil, &Error{Code: FailedPrecondition, Op: "listen", Addr: addr, Err: err, Message: "this is no listening stream socket",
			Hint: "the socket unit must have ListenStream= and Accept=no"}
	}
	ln, err := net.FileListener(s.file)
	if err != nil {
		return nil, err
	}
	switch ln := ln.(type) {
	case *net.UnixListener:
		return &unixListener{addr: addr, path: ln.Addr().String(), bufferSize: cfg.Unix.BufferSize, ln: ln}, nil
	case *net.TCPListener:
		if err := loopbackOnly("listen", addr, cfg)("tcp", ln.Addr().String(), nil); err != nil {
			ln.Close()
			return nil, err
		}
		keepAlive := tcpKeepAlive(cfg)
		return &tcpListener{ln: ln, cfg: cfg.TCP, keepAlive: &keepAlive}, nil
	}
	ln.Close()
	return nil, &Error{Code: Unimplemented, Op: "listen", Addr: addr, Message: fmt.Sprintf("this is a socket of the network %q", ln.Addr().Network())}
}
