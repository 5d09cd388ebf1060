package plugwiretest

import "syscall"

const errReset = syscall.ErrorString("connection reset")
