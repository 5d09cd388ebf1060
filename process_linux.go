package plugwire

import (
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// dieWithParent has the kernel kill the process when the thread ends that
// starts it, unless the template wants another signal then. It reports whether
// that was set here. (A parent that ends between fork and exec is package
// syscall's to notice.) The kernel forgets it when the process executes a setuid program.
func dieWithParent(cmd *exec.Cmd) bool {
	if cmd.SysProcAttr.Pdeathsig != 0 {
		return false
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return true
}

// wakeWithParent replaces what dieWithParent set for this process: the parent's
// death wakes it, should it be stopped. It must run on the main thread, which alone has
// the setting: in an init function.
func wakeWithParent() { unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGCONT), 0, 0, 0) }

// exitOf returns a descriptor that is readable when a process has exited, or -1.
func exitOf(pid int) int {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1
	}
	return fd
}

// awaitExit waits until the child has ended, without reaping it, and reports
// whether it could.
func awaitExit(p *os.Process) bool {
	for {
		err := unix.Waitid(unix.P_PID, p.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return err == nil
		}
	}
}

// groupMembers returns the processes of a group, also those that have ended and
// were not reaped.
func groupMembers(group int) (pids []int, err error) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if g, err := unix.Getpgid(pid); err == nil && g == group {
			pids = append(pids, pid)
		}
	}
	return pids, err
}
