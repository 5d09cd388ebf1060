//go:build unix

package batch

import "syscall"

// canTry says that writeOnce works on what SyscallConn hands out.
const canTry = true

// writeOnce makes one write call on a non-blocking descriptor. A full socket is
// 0 bytes and no error.
func writeOnce(fd uintptr, b []byte) (int, error) {
	for {
		n, err := syscall.Write(int(fd), b)
		switch err {
		case nil:
			return n, nil
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return 0, nil
		}
		return 0, err
	}
}
