//go:build !unix && !windows

package plugwire

// What the refusal of "unix:" says where there is no transport at all.
const (
	localSockets  = "Unix sockets"
	insteadOfUnix = "pass a connection of your own to NewConn or Server.ServeConn"
)

// errnoCodes are the codes of system errors that have one of their own.
var errnoCodes []errnoCode
