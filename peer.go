package plugwire

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/plugwire/plugwire/internal/peercred"
)

// Peer says who is on the other side of a connection, as far as the kernel (or
// TLS) has verified it: nothing in it is the other side's own claim. Ids that
// are not known are -1.
type Peer struct {
	UID, GID, PID int
	Transport     string // the scheme of the connection's address
	Verified      bool   // the ids come from the kernel
}

// String describes the peer for logs and errors.
func (p *Peer) String() string {
	if !p.Verified {
		return "unverified peer over " + p.Transport
	}
	return fmt.Sprintf("uid %d gid %d pid %d over %s", p.UID, p.GID, p.PID, p.Transport)
}

// authorize asks the kernel who is on the other side of nc, before anything is
// read from it, and refuses who may not be there.
func authorize(nc net.Conn, cfg *Config) (*Peer, error) {
	p := &Peer{UID: -1, GID: -1, PID: -1, Transport: nc.RemoteAddr().Network()}
	var cause error
	if p.Transport == "unix" {
		cause = errors.ErrUnsupported
		if sc, ok := nc.(syscall.Conn); ok {
			if raw, err := sc.SyscallConn(); err == nil {
				var cred peercred.Cred
				if cred, cause = peercred.Of(raw); cause == nil {
					p.UID, p.GID, p.PID, p.Verified = cred.UID, cred.GID, cred.PID, true
				}
			}
		}
	}
	if cfg.Authorize != nil {
		if err := cfg.Authorize(p); err != nil {
			return nil, &Error{Code: PermissionDenied, Message: fmt.Sprintf("Config.Authorize refuses %v", p), Err: err}
		}
		return p, nil
	}
	switch {
	case p.Transport != "unix":
		return p, nil
	case cause != nil:
		return nil, &Error{Code: PermissionDenied, Message: "the system does not tell who the peer is", Err: cause,
			Hint: "to allow it all the same, set Config.Authorize"}
	case p.UID != os.Geteuid():
		return nil, &Error{Code: PermissionDenied, Message: fmt.Sprintf("refused %v: only uid %d is allowed", p, os.Geteuid()),
			Hint: "to allow others, set Config.Authorize"}
	}
	return p, nil
}

// hasTLS reports whether connections are encrypted and both sides known by certificate.
func (c *Config) hasTLS() bool { return false }
