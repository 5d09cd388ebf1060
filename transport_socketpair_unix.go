//go:build unix

package plugwire

import (
	"errors"
	"net"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// The transport "socketpair": two connected sockets without a name, of which the
// plugin inherits one. Nothing is listened on, and nothing is in a file system.
//
// The kernel says of each end who made the pair: the host, on both sides. Who
// is there is shown by the one-time secret.

const haveSocketpair = true

// socketpairConn is one end.
type socketpairConn struct {
	*net.UnixConn
	addr inheritedAddr
}

func (c *socketpairConn) LocalAddr() net.Addr  { return c.addr }
func (c *socketpairConn) RemoteAddr() net.Addr { return c.addr }

// newSocketpair returns this side's end, and the one for the plugin to inherit.
func newSocketpair() (near net.Conn, far *os.File, err error) {
	syscall.ForkLock.RLock() // where they cannot be made close-on-exec at once
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	far = os.NewFile(uintptr(fds[1]), socketpairScheme)
	if near, err = socketpairEnd(os.NewFile(uintptr(fds[0]), socketpairScheme), fds[1]); err != nil {
		far.Close()
		return nil, nil, err
	}
	return near, far, nil
}

// inheritedSocketpair returns the end that this process was started with. The
// descriptor may be something else by now: a wrapper may have closed it.
func inheritedSocketpair(fd int) (net.Conn, error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind != unix.SOCK_STREAM || !unnamed(unix.Getsockname(fd)) || !unnamed(unix.Getpeername(fd)) {
		return nil, errors.New("what starts the plugin does not pass on the descriptor of its socket")
	}
	unix.CloseOnExec(fd)
	return socketpairEnd(os.NewFile(uintptr(fd), socketpairScheme), fd)
}

// unnamed reports whether an address is that of a socket made by socketpair.
func unnamed(sa unix.Sockaddr, err error) bool {
	u, ok := sa.(*unix.SockaddrUnix)
	return err == nil && ok && (u.Name == "" || u.Name == "@") // as package unix writes it on Linux
}

// socketpairEnd makes a connection of a socket's file, which it closes. name is
// the number by which the pair goes.
func socketpairEnd(f *os.File, name int) (net.Conn, error) {
	defer f.Close()
	nc, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return &socketpairConn{nc.(*net.UnixConn), inheritedAddr{socketpairScheme, strconv.Itoa(name)}}, nil
}
