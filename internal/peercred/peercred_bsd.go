//go:build openbsd || netbsd

package peercred

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Tells says that the kernel names peers here.
const Tells = true

// ofSocket asks for the three numbers that both systems give, in orders of their
// own. x/sys has no function for them: they come in a structure that is larger.
func ofSocket(fd uintptr) (Cred, error) {
	b, err := unix.GetsockoptIPv6Mreq(int(fd), peerLevel, peerOption)
	if err != nil {
		return unknown, os.NewSyscallError("getsockopt "+peerName, err)
	}
	number := func(i int) int { return int(int32(binary.NativeEndian.Uint32(b.Multiaddr[4*i:]))) }
	c := Cred{UID: number(peerUID), GID: number(peerGID), PID: number(peerPID)}
	if c.PID <= 0 { // an answer without a process is none, whatever else it says
		return unknown, fmt.Errorf("getsockopt %s: %w", peerName, errors.ErrUnsupported)
	}
	return c, nil
}
