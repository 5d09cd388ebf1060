//go:build !android && !race && !msan && !asan

package sockio

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const canUntold = true

// The calls for sockets take a flag that keeps them from waiting, whatever mode the
// descriptor is in; a thread that waits in a call that was not told of would keep
// its processor.

func writeUntold(fd uintptr, b []byte) (int, error) {
	return untold(unix.SYS_SENDTO, fd, b, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}

func readUntold(fd uintptr, b []byte) (int, error) {
	return untold(unix.SYS_RECVFROM, fd, b, unix.MSG_DONTWAIT)
}

func untold(trap, fd uintptr, b []byte, flags uintptr) (int, error) {
	if len(b) == 0 {
		return 0, errTell
	}
	n, _, err := syscall.RawSyscall6(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), flags, 0, 0)
	switch err {
	case 0:
		return int(n), nil
	case syscall.ENOTSOCK, syscall.ENOSYS, syscall.EPERM, syscall.EACCES: // a pipe, an old kernel, a sandbox
		return 0, errTell
	}
	return 0, err
}
