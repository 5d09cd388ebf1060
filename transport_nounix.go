//go:build !unix

package plugwire

import (
	"context"
	"net"
	"runtime"
)

// unixTransport refuses every address: this platform has no Unix sockets that
// this version could use.
type unixTransport struct{}

func (unixTransport) Listen(_ context.Context, addr string, _ *Config) (net.Listener, error) {
	return nil, noUnixSockets("listen", addr)
}

func (unixTransport) Dial(_ context.Context, addr string, _ *Config) (net.Conn, error) {
	return nil, noUnixSockets("dial", addr)
}

func noUnixSockets(op, addr string) error {
	return &Error{Code: Unimplemented, Op: op, Addr: addr, Hint: insteadOfUnix,
		Message: localSockets + " are not supported on " + runtime.GOOS + " by this version"}
}
