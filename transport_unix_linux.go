package plugwire

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxLongName is how long the last place of a path may be that does not fit a
// socket address: what there is room for beside a descriptor's name.
const maxLongName = maxUnixPath - len(procFD+"2147483647/")

// tooLong says why a path is too long, or "".
func tooLong(path string) string {
	_, name := splitPath(path)
	if len(path) <= maxUnixPath || len(name) <= maxLongName {
		return ""
	}
	return fmt.Sprintf("the path has %d bytes, a socket address holds at most %d; in a longer one the last name may have %d, here it has %d",
		len(path), maxUnixPath, maxLongName, len(name))
}

// openSocketFile looks at what there is at path, through descriptors of the
// directory and of the file itself, whatever kind it is of. So nothing can be
// swapped between a look and another, or a look and connecting.
func openSocketFile(path string) (*socketFile, error) {
	dirName, name := splitPath(path)
	dir, err := os.OpenFile(dirName, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, pathError("open", path, err)
	}
	file := os.NewFile(uintptr(fd), path)
	f := &socketFile{close: func() { file.Close() }}
	var err1, err2 error
	f.dir, err1 = dir.Stat()
	f.file, err2 = file.Stat()
	if f.at, err = byDescriptor(file, path); err != nil && len(path) <= maxUnixPath {
		f.at, err = path, nil // where there is no /proc, what is there when connect comes
	}
	if err := errors.Join(err1, err2, err); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

// byDescriptor returns a path of an open file that needs no directory but /proc.
func byDescriptor(f *os.File, path string) (string, error) {
	at := procFD + strconv.Itoa(int(f.Fd()))
	if _, err := os.Lstat(at); err != nil {
		return "", &Error{Code: InvalidArgument, Err: err, Message: fmt.Sprintf("without /proc a path may have %d bytes, %s has %d", maxUnixPath, path, len(path)),
			Hint: "choose a shorter one, or mount /proc"}
	}
	return at, nil
}

// bindSocket gives a socket its path.
func bindSocket(fd int, path string) error {
	at := path
	if len(path) > maxUnixPath {
		dirName, name := splitPath(path)
		dir, err := os.OpenFile(dirName, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer dir.Close()
		if at, err = byDescriptor(dir, path); err != nil {
			return err
		}
		at += "/" + name
	}
	return os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrUnix{Name: at}))
}

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

// settleSocket gives the socket made at path its group, where that is not -1,
// and the bits of mode that the umask took. It goes through a descriptor of the
// file, since chmod would follow a symbolic link that was put there meanwhile,
// and not to is only known to Linux 6.6 and later.
func settleSocket(path string, made fs.FileInfo, mode fs.FileMode, group int) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if now, err := f.Stat(); err != nil || !os.SameFile(now, made) {
		return pathError("bind", path, errReplaced)
	}
	at := procFD + strconv.Itoa(fd)
	if group != -1 {
		if err := unix.Chown(at, -1, group); err != nil {
			return pathError("chown", path, err)
		}
	}
	return pathError("chmod", path, unix.Chmod(at, uint32(mode)))
}
