//go:build !unix && !windows

package plugwire

import (
	"os"
	"os/exec"
	"syscall"
)

// There are no process groups here.

var stopSignals = []os.Signal{syscall.SIGTERM}

func ownGroup(*exec.Cmd) bool { return false }

func joinGroup(*exec.Cmd, bool) error { return nil }

func endGroup(*exec.Cmd) {}

func inGroupOf(pid, leader int) bool { return pid == leader }

func signalGroup(p *os.Process, sig sysSignal) { p.Signal(sig) }

func dieWithParent(*exec.Cmd) bool { return false }

func awaitExit(*os.Process) bool { return false }
