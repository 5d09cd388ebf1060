package lockfile

import "golang.org/x/sys/unix"

// AIX has no flock. A lock of fcntl belongs to the process: it keeps other
// processes out, but not this process's own second attempt.

func tryLock(fd int) error { return setLock(fd, unix.F_WRLCK) }

func dropLock(fd int) error { return setLock(fd, unix.F_UNLCK) }

func setLock(fd int, kind int16) error {
	return unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: kind})
}
