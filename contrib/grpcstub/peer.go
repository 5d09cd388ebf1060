package grpcstub

import (
	"github.com/plugwire/plugwire"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// AuthInfo is the AuthInfo of the peers that peer.FromContext and grpc.Peer give:
// who the other side is, as far as the kernel has verified it.
type AuthInfo struct {
	credentials.CommonAuthInfo
	Peer *plugwire.Peer
}

// AuthType returns "plugwire".
func (AuthInfo) AuthType() string { return "plugwire" }

// peerOf describes a connection's other side. A Unix socket does not leave the
// machine, which grpc's own local credentials count as private, too.
func peerOf(c *plugwire.Conn) *peer.Peer {
	p := c.Peer()
	info := AuthInfo{Peer: p}
	info.SecurityLevel = credentials.NoSecurity
	if p.Transport == "unix" {
		info.SecurityLevel = credentials.PrivacyAndIntegrity
	}
	return &peer.Peer{Addr: c.RemoteAddr(), LocalAddr: c.LocalAddr(), AuthInfo: info}
}

// connOf returns the connection that a Caller uses, or nil when that is unknown.
func connOf(c plugwire.Caller) *plugwire.Conn {
	switch c := c.(type) {
	case *plugwire.Conn:
		return c
	case interface{ Conn() *plugwire.Conn }:
		return c.Conn()
	}
	return nil
}
