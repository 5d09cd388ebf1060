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
	Verified      bool   // the ids come from the kernel, or TLS has verified the certificate
	SPIFFEID      string // that TLS has verified, see TLSConfig.TrustDomain; else ""

	cert any    // *x509.Certificate that TLS has verified, or nil; see tls.go
	name string // how String says whose it is, or ""
}

// String describes the peer for logs and errors.
func (p *Peer) String() string {
	switch {
	case !p.Verified:
		return "unverified peer over " + p.Transport
	case p.name != "" && p.UID < 0:
		return p.name + " over " + p.Transport
	case p.name != "":
		return fmt.Sprintf("%s, uid %d gid %d pid %d over %s", p.name, p.UID, p.GID, p.PID, p.Transport)
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

// hasTLS reports whether anything of Config.TLS is set, also too little of it:
// that is an error then, and never plaintext.
func (c *Config) hasTLS() bool {
	t := &c.TLS
	return t.CertFile != "" || t.KeyFile != "" || t.CAFile != "" || t.Names != nil || t.TrustDomain != "" ||
		t.AuthorizeID != nil || t.cert != nil || t.roots != nil || t.pin != ""
}
