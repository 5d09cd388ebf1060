//go:build !unix && !windows

package plugwire

import "os/exec"

func isBadFormat(error) bool { return false }

func changesRoot(*exec.Cmd) bool { return false }
