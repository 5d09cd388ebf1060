package batch

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// canTryTwo says that writeTwo works.
const canTryTwo = true

// parts describes two pieces of memory to the kernel. It is the Writer's, so that
// describing them allocates nothing, as it would in unix.Writev.
type parts [2]unix.Iovec

// writeTwo is writeOnce for two pieces, neither of them empty, in one call.
func writeTwo(fd uintptr, p *parts, a, b []byte) (int, error) {
	p[0].Base, p[1].Base = &a[0], &b[0]
	p[0].SetLen(len(a))
	p[1].SetLen(len(b))
	defer clear(p[:])
	for {
		n, _, err := syscall.Syscall(syscall.SYS_WRITEV, fd, uintptr(unsafe.Pointer(p)), uintptr(len(p)))
		switch err {
		case 0:
			return int(n), nil
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return 0, nil
		}
		return 0, err
	}
}
