package sockio

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TwoAvailable says that Two.Read works.
const TwoAvailable = true

// Two describes two pieces of memory to the kernel. It is its user's, so that
// describing them allocates nothing, as it would in unix.Readv.
type Two [2]unix.Iovec

// Read is the function Read to two pieces, neither of them empty, in one call.
func (t *Two) Read(fd uintptr, a, b []byte) (n int, again bool, err error) {
	t[0].Base, t[1].Base = &a[0], &b[0]
	t[0].SetLen(len(a))
	t[1].SetLen(len(b))
	defer clear(t[:])
	for {
		n, _, err := syscall.Syscall(syscall.SYS_READV, fd, uintptr(unsafe.Pointer(t)), uintptr(len(t)))
		switch err {
		case 0:
			return int(n), false, nil
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return 0, true, nil
		}
		return 0, false, err
	}
}
