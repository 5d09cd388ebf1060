//go:build unix

package plugwire

import (
	"os"
	"syscall"

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
