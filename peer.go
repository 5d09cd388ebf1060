package plugwire

import "fmt"

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
