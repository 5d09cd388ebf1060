package plugwire

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// canReadTwo says that readTwo works.
const canReadTwo = true

// twoParts describes two pieces of memory to the kernel; see readTwo.
type twoParts [2]unix.Iovec

// readTwo is readOnce to two pieces, neither of them empty, in one call. p is for
// it to use, so that it allocates nothing, as unix.Readv would.
func readTwo(fd uintptr, p *twoParts, a, b []byte) (n int, again bool, err error) {
	p[0].Base, p[1].Base = &a[0], &b[0]
	p[0].SetLen(len(a))
	p[1].SetLen(len(b))
	defer clear(p[:])
	for {
		n, _, errno := syscall.Syscall(syscall.SYS_READV, fd, uintptr(unsafe.Pointer(p)), uintptr(len(p)))
		switch errno {
		case 0:
			return int(n), false, nil
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return 0, true, nil
		}
		return 0, false, errno
	}
}
