//go:build unix

package lockfile

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const openFlags = unix.O_NOFOLLOW | unix.O_CLOEXEC

// checkOwner refuses a file that is not this process's own.
func checkOwner(f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return refused(f.Name(), "is no regular file")
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
		return refused(f.Name(), fmt.Sprintf("is not owned by uid %d", os.Geteuid()))
	}
	return nil
}

func lock(f *os.File) error {
	err := control(f, tryLock)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EACCES) {
		return ErrHeld
	}
	return os.NewSyscallError("lock", err)
}

func unlock(f *os.File) error { return os.NewSyscallError("unlock", control(f, dropLock)) }

// control runs a system call on f's descriptor until no signal interrupts it.
func control(f *os.File, call func(fd int) error) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if e := rc.Control(func(fd uintptr) {
		for err = call(int(fd)); err == unix.EINTR; err = call(int(fd)) {
		}
	}); e != nil {
		return e
	}
	return err
}
