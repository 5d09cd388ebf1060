package peercred

import (
	"os"
	"syscall"
)

// A Process is a hold on the process at the other side of a socket: as long as
// it is open it tells that process from a later one with the same pid. All
// methods may be called on nil, which knows nothing, and by several goroutines
// at once.
type Process struct {
	f          *os.File // owns the pidfd, or the handle
	executable string
}

// ProcessOf holds the peer of a connected Unix socket or named pipe, of which Of has said c.
// It returns nil where the platform has nothing to hold a process by, and when
// the process is gone. The caller closes it.
func ProcessOf(rc syscall.RawConn, c Cred) *Process {
	if c.PID <= 0 { // not one that we could name
		return nil
	}
	var p *Process
	if err := rc.Control(func(fd uintptr) { p = processOf(fd, c.PID) }); err != nil {
		return nil
	}
	return p
}

// Executable is the path of the program that the process ran when ProcessOf
// returned, or "".
func (p *Process) Executable() string {
	if p == nil {
		return ""
	}
	return p.executable
}

// Alive reports whether the process has not exited. It is false after Close.
func (p *Process) Alive() bool {
	if p == nil {
		return false
	}
	alive := false
	rc, err := p.f.SyscallConn()
	return err == nil && rc.Control(func(fd uintptr) { alive = isAlive(fd) }) == nil && alive
}

// Close lets go of the process. Later calls do nothing.
func (p *Process) Close() {
	if p != nil {
		_ = p.f.Close() // nothing was written to it
	}
}
