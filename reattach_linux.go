package plugwire

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// signalIf sends a signal to a process that is no child of this one, and to its
// group if it leads one, if that is the right one. The descriptor comes first: what
// is found right then is what gets the signal, even if it ends in between and
// its number becomes another's. Kernels before 6.9 know a group only by number.
func signalIf(p *os.Process, right func() bool, sig syscall.Signal) {
	fd, err := unix.PidfdOpen(p.Pid, 0)
	if err == nil {
		defer unix.Close(fd)
	}
	if !right() {
		return
	}
	if err != nil { // a kernel before 5.3
		signalGroup(p, sig)
		return
	}
	if group, err := unix.Getpgid(p.Pid); err != nil || group != p.Pid {
		unix.PidfdSendSignal(fd, sig, nil, 0)
	} else if unix.PidfdSendSignal(fd, sig, nil, pidfdSignalProcessGroup) == unix.EINVAL {
		signalGroup(p, sig)
	}
}

const pidfdSignalProcessGroup = 1 << 2 // x/sys v0.1.0 does not have it
