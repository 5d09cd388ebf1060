package plugwire

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"

	"github.com/plugwire/plugwire/internal/peercred"
)

// Peer says who is on the other side of a connection, as far as the kernel (or
// TLS) has verified it: nothing in it is the other side's own claim. Ids that
// are not known are -1. They are those of the moment when the other side
// connected or, seen by the dialling side, when it called listen: the process may
// have handed the connection on since (see Valid).
type Peer struct {
	UID, GID, PID int
	SID           string // Windows, over named pipes: the user, as "S-1-5-..."; of a server, the owner of the pipe; else ""
	Executable    string // Linux, Windows: path of the program that PID ran when the handshake began, as the system names it; "" when not known
	Transport     string // the scheme of the connection's address
	Verified      bool   // the ids come from the kernel, or TLS has verified the certificate
	SPIFFEID      string // that TLS has verified, see TLSConfig.TrustDomain; else ""

	cert    any               // *x509.Certificate that TLS has verified, or nil; see tls.go
	name    string            // how String says whose it is, or ""
	process *peercred.Process // or nil; closed with the connection
}

// Valid reports whether the process that PID names is still the one that
// connected: what is looked up by PID while Valid is true both before and after
// is about that process. It is false when that process has exited, when the
// connection is over, and where nobody can tell: it is only ever true over Unix
// sockets on Linux, and over named pipes of processes that this one may open.
// (On Windows, and before Linux 6.5, a process that exits within the instant
// between connecting and being accepted may be mistaken for its successor.)
func (p *Peer) Valid() bool { return p.process.Alive() }

// String describes the peer for logs and errors.
func (p *Peer) String() string {
	switch {
	case !p.Verified:
		return "unverified peer over " + p.Transport
	case p.SID != "" && p.name != "":
		return fmt.Sprintf("%s, sid %s pid %d over %s", p.name, p.SID, p.PID, p.Transport)
	case p.SID != "":
		return fmt.Sprintf("sid %s pid %d over %s", p.SID, p.PID, p.Transport)
	case p.name != "" && p.UID < 0:
		return p.name + " over " + p.Transport
	case p.name != "":
		return fmt.Sprintf("%s, uid %d gid %d pid %d over %s", p.name, p.UID, p.GID, p.PID, p.Transport)
	}
	return fmt.Sprintf("uid %d gid %d pid %d over %s", p.UID, p.GID, p.PID, p.Transport)
}

// identify asks the kernel who is on the other side of nc. The error says why it
// could not be told of a Unix socket or named pipe; of other connections nothing is asked.
func identify(nc net.Conn) (*Peer, error) {
	p := &Peer{UID: -1, GID: -1, PID: -1, Transport: nc.RemoteAddr().Network()}
	if p.Transport != "unix" && p.Transport != "npipe" {
		return p, nil
	}
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return p, errors.ErrUnsupported
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return p, err
	}
	cred, err := peercred.Of(raw)
	if err != nil {
		return p, err
	}
	p.UID, p.GID, p.PID, p.SID, p.Verified = cred.UID, cred.GID, cred.PID, cred.SID, true
	p.process = peercred.ProcessOf(raw, cred)
	p.Executable = p.process.Executable()
	return p, nil
}

// authorize finds out who is on the other side of nc, before anything is read
// from it, and refuses who may not be there. What it returns holds a descriptor
// until its process is closed.
func authorize(nc net.Conn, dialler bool, cfg *Config) (*Peer, error) {
	p, unknown := identify(nc)
	err := cfg.refusal(nc, p, dialler, unknown)
	if err == nil && cfg.vouch != nil {
		err = cfg.vouch(p)
	}
	if err != nil {
		p.process.Close()
		return nil, err
	}
	return p, nil
}

// refusal says why p may not be at the other side of nc, or nil. unknown is why
// the kernel does not tell who p is, if it should.
func (c *Config) refusal(nc net.Conn, p *Peer, dialler bool, unknown error) error {
	if p.Transport == "tcp" { // whoever made nc need not have asked the transport
		for _, addr := range []net.Addr{nc.RemoteAddr(), nc.LocalAddr()} {
			if err := c.mayUse("", "", addr.String()); err != nil {
				return err
			}
		}
	}
	switch {
	case c.Authorize != nil && !c.hasTLS(): // else when TLS has said its part too
		return c.askAuthorize(p)
	case c.Authorize != nil:
	case p.Transport != "unix" && p.Transport != "npipe":
	case unknown != nil:
		return &Error{Code: PermissionDenied, Message: "the system does not tell who the peer is", Err: unknown,
			Hint: "to allow it all the same, set Config.Authorize"}
	case p.Transport == "npipe":
		return c.refusalOfSID(p, dialler)
	case p.UID == os.Geteuid():
	case dialler && !contains(c.Unix.ServerUIDs, p.UID):
		return &Error{Code: PermissionDenied,
			Message: fmt.Sprintf("refused %v: a server may run as uid %v", p, append([]int{os.Geteuid()}, c.Unix.ServerUIDs...)),
			Hint:    fmt.Sprintf("to talk to it, add %d to the dialling side's Config.Unix.ServerUIDs", p.UID)}
	case !dialler && !contains(c.Unix.ClientUIDs, p.UID) && !contains(c.Unix.ClientGIDs, p.GID):
		groups := ""
		if len(c.Unix.ClientGIDs) > 0 {
			groups = fmt.Sprintf(" or gid %v", c.Unix.ClientGIDs)
		}
		return &Error{Code: PermissionDenied,
			Message: fmt.Sprintf("refused %v: a client may run as uid %v%s", p, append([]int{os.Geteuid()}, c.Unix.ClientUIDs...), groups),
			Hint:    fmt.Sprintf("to let it in, add %d to the server's Config.Unix.ClientUIDs, or %d to its ClientGIDs", p.UID, p.GID)}
	}
	return nil
}

// refusalOfSID says why p may not be at the other side of a named pipe, or nil.
// That a client could open the pipe says that its server lets it; here it counts
// who it is.
func (c *Config) refusalOfSID(p *Peer, dialler bool) error {
	own, err := peercred.OwnSID()
	further, may, side, field := c.NPipe.ClientSIDs, "a client may run as", "server's", "ClientSIDs"
	if dialler {
		further, may, side, field = c.NPipe.ServerSIDs, "a pipe may belong to", "dialling side's", "ServerSIDs"
	}
	if p.SID != "" && (err == nil && p.SID == own || slices.Contains(further, p.SID)) {
		return nil
	}
	return &Error{Code: PermissionDenied, Err: err,
		Message: fmt.Sprintf("refused %v: %s %v", p, may, append([]string{own}, further...)),
		Hint:    fmt.Sprintf("to allow it, add %q to the %s Config.NPipe.%s", p.SID, side, field)}
}

// contains reports whether an id is in a list, where no unknown one ever is.
func contains(ids []int, id int) bool { return id >= 0 && slices.Contains(ids, id) }

// askAuthorize has Config.Authorize decide, if it is set.
func (c *Config) askAuthorize(p *Peer) error {
	if c.Authorize == nil {
		return nil
	}
	if err := c.Authorize(p); err != nil {
		return &Error{Code: PermissionDenied, Message: fmt.Sprintf("Config.Authorize refuses %v", p), Err: err}
	}
	return nil
}

// hasTLS reports whether anything of Config.TLS is set, also too little of it:
// that is an error then, and never plaintext.
func (c *Config) hasTLS() bool {
	t := &c.TLS
	return t.CertFile != "" || t.KeyFile != "" || t.CAFile != "" || t.Names != nil || t.TrustDomain != "" ||
		t.AuthorizeID != nil || t.cert != nil || t.roots != nil || t.pin != ""
}
