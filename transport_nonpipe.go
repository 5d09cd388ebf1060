//go:build !windows

package plugwire

import (
	"context"
	"net"
	"runtime"
)

// npipeTransport refuses every address: named pipes are of Windows.
type npipeTransport struct{}

func (npipeTransport) Listen(_ context.Context, addr string, _ *Config) (net.Listener, error) {
	return nil, noNamedPipes("listen", addr)
}

func (npipeTransport) Dial(_ context.Context, addr string, _ *Config) (net.Conn, error) {
	return nil, noNamedPipes("dial", addr)
}

func noNamedPipes(op, addr string) error {
	return &Error{Code: Unimplemented, Op: op, Addr: addr, Hint: `use "unix:"`,
		Message: "there are no named pipes of Windows on " + runtime.GOOS}
}
