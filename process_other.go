//go:build !unix

package plugwire

import (
	"os"
	"os/exec"
	"syscall"
)

// There are no process groups here.

func ownGroup(*exec.Cmd) {}

func inGroupOf(pid, leader int) bool { return pid == leader }

func signalGroup(p *os.Process, sig syscall.Signal) { p.Signal(sig) }
