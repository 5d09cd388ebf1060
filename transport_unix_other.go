//go:build unix && !linux

package plugwire

import (
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// newUnixSocket returns a socket. Its mode cannot be set before bind here.
func newUnixSocket(fs.FileMode) (int, error) {
	syscall.ForkLock.RLock() // no child may inherit it
	defer syscall.ForkLock.RUnlock()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	unix.CloseOnExec(fd)
	return fd, nil
}

// chmodSocket sets the mode of the socket at path, not through a symbolic link
// that was put there meanwhile.
func chmodSocket(path string, mode fs.FileMode) error {
	return unix.Fchmodat(unix.AT_FDCWD, path, uint32(mode), unix.AT_SYMLINK_NOFOLLOW)
}
