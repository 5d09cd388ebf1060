//go:build unix

package plugwire

import (
	"os"
	"os/exec"
	"syscall"
)

// ownGroup has cmd run in a process group of its own, so that what it starts
// can be told from other processes and ended with it. A template that asks for a
// session or a group gets that.
func ownGroup(cmd *exec.Cmd) {
	var attr syscall.SysProcAttr
	if cmd.SysProcAttr != nil {
		attr = *cmd.SysProcAttr
	}
	if !attr.Setsid && !attr.Setpgid && !attr.Foreground {
		attr.Setpgid = true
	}
	cmd.SysProcAttr = &attr
}

// inGroupOf reports whether two processes are in the same process group.
func inGroupOf(pid, leader int) bool {
	a, err1 := syscall.Getpgid(pid)
	b, err2 := syscall.Getpgid(leader)
	return err1 == nil && err2 == nil && a == b
}

// signalGroup sends a signal to the process, which has not been waited for, and
// to all others of its group if it leads one.
func signalGroup(p *os.Process, sig syscall.Signal) {
	if pgid, err := syscall.Getpgid(p.Pid); err == nil && pgid == p.Pid {
		syscall.Kill(-pgid, sig)
		return
	}
	p.Signal(sig)
}
