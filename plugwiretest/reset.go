//go:build !plan9

package plugwiretest

import "syscall"

const errReset = syscall.ECONNRESET
