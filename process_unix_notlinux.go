//go:build unix && !linux

package plugwire

import "os/exec"

// The end of stdin, and the Unix calls of hostwatch_unix.go, do without these.

func dieWithParent(*exec.Cmd) bool { return false }

func wakeWithParent() {}
