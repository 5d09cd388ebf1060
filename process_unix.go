//go:build unix

package plugwire

import (
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// stopSignals are those that ServePlugin takes for the wish that it ends.
var stopSignals = []os.Signal{syscall.SIGTERM}

// ownGroup has cmd run in a process group of its own, so that what it starts
// can be told from other processes and ended with it, and so that Ctrl-C in a
// terminal reaches the host alone. A template that asks for a session or a group
// gets that. It reports whether the process is going to lead its group.
func ownGroup(cmd *exec.Cmd) (leads bool) {
	var attr syscall.SysProcAttr
	if cmd.SysProcAttr != nil {
		attr = *cmd.SysProcAttr
	}
	if !attr.Setsid && !attr.Setpgid && !attr.Foreground {
		attr.Setpgid, attr.Pgid = true, 0
	}
	cmd.SysProcAttr = &attr
	return attr.Pgid == 0 || !attr.Setpgid && !attr.Foreground
}

// joinGroup has nothing left to do.
func joinGroup(*exec.Cmd, bool) error { return nil }

// endGroup kills what a process that has ended has left in the group it led.
func endGroup(cmd *exec.Cmd) {
	if a := cmd.SysProcAttr; a.Pgid == 0 || !a.Setpgid && !a.Foreground {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
}

// inGroupOf reports whether two processes are in the same process group.
func inGroupOf(pid, leader int) bool {
	a, err1 := unix.Getpgid(pid)
	b, err2 := unix.Getpgid(leader)
	return err1 == nil && err2 == nil && a == b
}

// signalGroup sends a signal to the process, which has not been waited for, and
// to all others of its group if it leads one.
func signalGroup(p *os.Process, sig syscall.Signal) {
	if pgid, err := unix.Getpgid(p.Pid); err == nil && pgid == p.Pid {
		syscall.Kill(-pgid, sig)
		return
	}
	p.Signal(sig)
}
