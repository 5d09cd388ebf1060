package peercred

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// soPeerPidfd is SO_PEERPIDFD of Linux 6.5 and later, which x/sys v0.1.0 does
// not have. It has the same number on all architectures but SPARC and PA-RISC,
// for which there is no Go.
const soPeerPidfd = 77

func processOf(fd uintptr, pid int) *Process {
	pidfd, err := pidfdOf(int(fd), soPeerPidfd, pid)
	if err != nil {
		return nil // the process is gone, or descriptors have run out
	}
	p := &Process{f: os.NewFile(uintptr(pidfd), "pidfd")}
	// The number means this process as long as it is there.
	exe, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	if err == nil && p.Alive() {
		p.executable = exe
	}
	return p
}

// pidfdOf returns a pidfd of the peer, close-on-exec as they all are. Kernels
// that do not know the option find the process by its number only: if the peer
// has exited since it connected, and the number was given away again, this is
// the wrong one. The window is the time from connect until here.
func pidfdOf(fd, option, pid int) (int, error) {
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option)
	if errors.Is(err, unix.ENOPROTOOPT) {
		pidfd, err = unix.PidfdOpen(pid, 0)
	}
	return pidfd, err
}

// isAlive polls a pidfd, which is readable when its process has exited.
func isAlive(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			return err == nil && n == 0
		}
	}
}
