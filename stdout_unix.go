//go:build unix && !linux

package plugwire

import "golang.org/x/sys/unix"

func stdoutToStderr() { unix.Dup2(2, 1) }
