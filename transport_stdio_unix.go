//go:build unix

package plugwire

import (
	"bytes"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dup returns a further descriptor of what fd is one of, which no child inherits.
func dup(fd int) (int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD, 3)
	if err == nil {
		unix.CloseOnExec(n)
	}
	return n, err
}

func dupStdin() (*os.File, error) {
	fd, err := dup(0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "stdin"), nil
}

// replaceStdin makes descriptor 0 one of f, which it closes.
func replaceStdin(f *os.File) error {
	defer f.Close()
	return dup2(int(f.Fd()), 0)
}

// orderFromSocket is orderFromStdin for a socket, as some versions of sshd make
// of it. It takes nothing but an order: a program that inetd or systemd has
// started finds its socket as it was. What is no connected stream brings none.
func orderFromSocket(wait time.Duration) string {
	kind, err := unix.GetsockoptInt(0, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind != unix.SOCK_STREAM {
		return ""
	}
	if _, err := unix.Getpeername(0); err != nil { // it listens
		return ""
	}
	b := make([]byte, maxLaunchLine)
	for start := time.Now(); time.Since(start) < wait; {
		fds := []unix.PollFd{{Fd: 0, Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, int(stdinPoll.Milliseconds())); n == 0 || err == unix.EINTR {
			continue
		}
		n, _, _ := unix.Recvfrom(0, b, unix.MSG_PEEK)
		if n <= 0 {
			return ""
		}
		line, is, err := readOrderLine(bytes.NewReader(b[:n]))
		switch {
		case is:
			return takeOrder(line)
		case err == nil:
			return ""
		}
		time.Sleep(stdinPoll) // for the rest of it
	}
	return ""
}

const stdinPoll = 10 * time.Millisecond

// takeOrder takes the line from stdin, where it was seen, and returns the order.
func takeOrder(line []byte) string {
	for n := 0; n < len(line); {
		k, err := unix.Read(0, line[n:])
		if err != nil && err != unix.EINTR || k == 0 {
			return ""
		}
		n += max(k, 0)
	}
	return orderOf(line)
}

// dupStdio returns stdin and stdout as files with deadlines, which leave the
// numbers 0 and 1 to others.
func dupStdio() (in, out *os.File, err error) {
	if in, err = dupPollable(0); err != nil {
		return nil, nil, err
	}
	if out, err = dupPollable(1); err != nil {
		in.Close()
		return nil, nil, err
	}
	return in, out, nil
}

func dupPollable(fd int) (*os.File, error) {
	n, err := dup(fd)
	if err != nil {
		return nil, err
	}
	unix.SetNonblock(n, true) // what cannot be stays as it is, without deadlines
	return os.NewFile(uintptr(n), "stdio"), nil
}

// same reports whether two files lead to the same place.
func same(a, b *os.File) bool {
	x, err1 := a.Stat()
	y, err2 := b.Stat()
	return err1 == nil && err2 == nil && os.SameFile(x, y) && x.Mode()&(os.ModeNamedPipe|os.ModeSocket|os.ModeDevice) != 0
}
