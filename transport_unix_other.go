//go:build unix && !linux

package plugwire

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// tooLong says why a path is too long, or "".
func tooLong(path string) string {
	if len(path) <= maxUnixPath {
		return ""
	}
	return fmt.Sprintf("the path has %d bytes, a socket address holds at most %d", len(path), maxUnixPath)
}

// openSocketFile looks at what there is at path. Who may write to the directory
// can replace it before the connection is made; what the kernel then says of the
// server tells.
func openSocketFile(path string) (*socketFile, error) {
	dirName, _ := splitPath(path)
	dir, err := os.Stat(dirName)
	if err != nil {
		return nil, err
	}
	file, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	return &socketFile{file: file, dir: dir, at: path, close: func() {}}, nil
}

// bindSocket gives a socket its path.
func bindSocket(fd int, path string) error {
	return os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
}

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

// settleSocket gives the socket made at path its group, where that is not -1,
// and its mode, not through a symbolic link that was put there meanwhile.
func settleSocket(path string, _ fs.FileInfo, mode fs.FileMode, group int) error {
	if group != -1 {
		if err := os.Lchown(path, -1, group); err != nil {
			return err // names operation and path
		}
	}
	return pathError("chmod", path, unix.Fchmodat(unix.AT_FDCWD, path, uint32(mode), unix.AT_SYMLINK_NOFOLLOW))
}
