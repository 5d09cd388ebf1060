package plugwire

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// startedAt says when a process started, or os.ErrProcessDone when it has ended.
func startedAt(pid int) (string, error) {
	const zombie = 5 // SZOMB of sys/proc.h
	info, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
	if err == unix.EIO || err == unix.ESRCH { // EIO: the answer is empty
		return "", os.ErrProcessDone
	}
	if err != nil {
		return "", err
	}
	if int(info.Proc.P_pid) != pid || info.Proc.P_stat == zombie {
		return "", os.ErrProcessDone
	}
	t := info.Proc.P_starttime
	return fmt.Sprintf("%d.%06d", t.Sec, t.Usec), nil
}
