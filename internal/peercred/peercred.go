// Package peercred asks the kernel who is on the other side of a Unix socket or,
// on Windows, of a named pipe.
package peercred

import (
	"fmt"
	"syscall"
)

// A Cred names the process on the other side as it was when it connected, or,
// seen by the connecting side, when the other called listen (on a socketpair:
// when the pair was made). What the kernel does not tell is -1.
type Cred struct {
	UID int    // effective user
	GID int    // effective group
	PID int    // as this process's pid namespace numbers it
	SID string // Windows: the user; a pipe's server is who owns the pipe
}

// unknown is what comes with each error, so that a caller which forgets to look
// at the error compares with nobody rather than with root.
var unknown = Cred{UID: -1, GID: -1, PID: -1}

// Of returns the credentials of the peer of a connected stream socket of the
// Unix family, or of a named pipe. On any other socket, and where the platform cannot tell, it fails
// with an error that matches errors.ErrUnsupported; whoever asked must then
// treat the peer as a stranger.
func Of(rc syscall.RawConn) (Cred, error) {
	var c Cred
	var err error
	if e := rc.Control(func(fd uintptr) { c, err = ofSocket(fd) }); e != nil {
		err = e
	}
	if err != nil {
		return unknown, fmt.Errorf("peer credentials: %w", err)
	}
	return c, nil
}
