package peercred

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Tells says that the kernel names peers here.
const Tells = true

func ofSocket(fd uintptr) (Cred, error) {
	u, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return unknown, os.NewSyscallError("getsockopt SO_PEERCRED", err)
	}
	// The option exists for sockets of every family, and answers with user -1
	// where there is no peer or the family keeps none.
	if u.Uid == ^uint32(0) {
		return unknown, fmt.Errorf("not a connected Unix socket: %w", errors.ErrUnsupported)
	}
	c := Cred{UID: int(u.Uid), GID: int(u.Gid), PID: int(u.Pid)}
	if c.PID == 0 {
		c.PID = -1 // a process that our pid namespace does not see
	}
	return c, nil
}
