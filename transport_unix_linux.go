package plugwire

import (
	"errors"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// newUnixSocket returns a socket with mode, which Linux gives, less the umask,
// to the file that bind makes of it.
func newUnixSocket(mode fs.FileMode) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.Fchmod(fd, uint32(mode)); err != nil {
		return -1, errors.Join(os.NewSyscallError("fchmod", err), unix.Close(fd))
	}
	return fd, nil
}

// chmodSocket gives the socket at path the bits that the umask took. It goes
// through a descriptor of the file, since chmod would follow a symbolic link
// that was put there meanwhile, and not to is only known to Linux 6.6 and later.
func chmodSocket(path string, mode fs.FileMode) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return errReplaced
	}
	return unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), uint32(mode))
}
