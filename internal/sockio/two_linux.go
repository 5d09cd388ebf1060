package sockio

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TwoAvailable says that ReadTwo and WriteTwo work.
const TwoAvailable = true

// Two describes two pieces of memory to the kernel. It is its user's, so that
// describing them allocates nothing, as it would in unix.Readv and unix.Writev.
type Two [2]unix.Iovec

func (t *Two) call(trap, fd uintptr, a, b []byte) (int, error) {
	t[0].Base, t[1].Base = &a[0], &b[0]
	t[0].SetLen(len(a))
	t[1].SetLen(len(b))
	defer clear(t[:])
	for {
		n, _, err := syscall.Syscall(trap, fd, uintptr(unsafe.Pointer(t)), uintptr(len(t)))
		switch err {
		case 0:
			return int(n), nil
		case syscall.EINTR:
			continue
		}
		return 0, err
	}
}

// Write is the function Write for two pieces, neither of them empty, in one call.
func (t *Two) Write(fd uintptr, a, b []byte) (int, error) {
	n, err := t.call(syscall.SYS_WRITEV, fd, a, b)
	if err == syscall.EAGAIN {
		return 0, nil
	}
	return n, err
}

// Read is the function Read to two pieces, neither of them empty, in one call.
func (t *Two) Read(fd uintptr, a, b []byte) (n int, again bool, err error) {
	n, err = t.call(syscall.SYS_READV, fd, a, b)
	if err == syscall.EAGAIN {
		return 0, true, nil
	}
	return n, false, err
}
