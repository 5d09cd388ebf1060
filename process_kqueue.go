//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package plugwire

import "golang.org/x/sys/unix"

// exitOf returns a descriptor that is readable when a process has exited, or -1:
// a kqueue, out of which the event is never taken.
func exitOf(pid int) int {
	fd, err := unix.Kqueue()
	if err != nil {
		return -1
	}
	unix.CloseOnExec(fd) // children do not inherit it anyway
	var exit unix.Kevent_t
	unix.SetKevent(&exit, pid, unix.EVFILT_PROC, unix.EV_ADD|unix.EV_ONESHOT)
	exit.Fflags = unix.NOTE_EXIT
	if _, err := unix.Kevent(fd, []unix.Kevent_t{exit}, nil, nil); err != nil {
		unix.Close(fd)
		return -1
	}
	return fd
}
