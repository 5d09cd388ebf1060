//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package plugwire

import (
	"os"

	"golang.org/x/sys/unix"
)

// watchExit returns a descriptor that is readable when a process has exited: a
// kqueue with that one event. The error is ESRCH for a process that has exited
// already, or is about to.
func watchExit(pid int) (int, error) {
	fd, err := unix.Kqueue()
	if err != nil {
		return -1, err
	}
	unix.CloseOnExec(fd) // children do not inherit it anyway
	var exit unix.Kevent_t
	unix.SetKevent(&exit, pid, unix.EVFILT_PROC, unix.EV_ADD|unix.EV_ONESHOT)
	exit.Fflags = unix.NOTE_EXIT
	if _, err := unix.Kevent(fd, []unix.Kevent_t{exit}, nil, nil); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// exitOf returns a descriptor that is readable when a process has exited, or -1.
func exitOf(pid int) int {
	fd, _ := watchExit(pid) // out of which the event is never taken
	return fd
}

// awaitExit waits until the child has ended, without reaping it, and reports
// whether it could. (The event can come before the child can be reaped, but
// then nothing stops its end any more.)
func awaitExit(p *os.Process) bool {
	fd, err := watchExit(p.Pid)
	if err != nil {
		return err == unix.ESRCH // nobody else reaps it, so it has ended
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Kevent(fd, nil, make([]unix.Kevent_t, 1), nil)
		if err != unix.EINTR {
			return n == 1
		}
	}
}
