//go:build unix

package plugwire

import "syscall"

// canReadRaw says that readOnce works on what SyscallConn hands out.
const canReadRaw = true

// readOnce makes one read call on a non-blocking descriptor; again says that
// there was nothing to read yet.
func readOnce(fd uintptr, b []byte) (n int, again bool, err error) {
	for {
		n, err = syscall.Read(int(fd), b)
		switch err {
		case nil:
			return n, false, nil
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return 0, true, nil
		}
		return 0, false, err
	}
}
