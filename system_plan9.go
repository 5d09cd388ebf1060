package plugwire

import "syscall"

type (
	sysSignal = syscall.Note
	sysErrno  = syscall.ErrorString
)
