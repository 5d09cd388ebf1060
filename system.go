//go:build !plan9

package plugwire

import "syscall"

// What the system's signals and errors are, which Plan 9 has as text.
type (
	sysSignal = syscall.Signal
	sysErrno  = syscall.Errno
)
