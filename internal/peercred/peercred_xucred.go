//go:build darwin || freebsd

package peercred

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Tells says that the kernel names peers here.
const Tells = true

// xucredVersion is XUCRED_VERSION of sys/ucred.h, the same on both systems.
const xucredVersion = 0

func ofSocket(fd uintptr) (Cred, error) {
	x, err := unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return unknown, os.NewSyscallError("getsockopt LOCAL_PEERCRED", err)
	}
	if x.Version != xucredVersion {
		return unknown, fmt.Errorf("getsockopt LOCAL_PEERCRED: version %d of its answer is not known", x.Version)
	}
	c := Cred{UID: int(x.Uid), GID: -1, PID: peerPID(int(fd))}
	if x.Ngroups > 0 {
		c.GID = int(x.Groups[0])
	}
	return c, nil
}
