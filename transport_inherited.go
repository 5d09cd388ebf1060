package plugwire

import (
	"context"
	"net"
	"sync"
)

// Transports of launches alone: the plugin gets its connection with its start,
// and nothing is listened on. See transport_stdio.go and transport_socketpair_unix.go.

const (
	stdioScheme      = "stdio"
	socketpairScheme = "socketpair"
)

// inherited is a transport of one connection that is there already.
type inherited struct{ nc net.Conn }

// inheritedOnly are the custom transports of one launch whose connection is there already.
func inheritedOnly(scheme string, nc net.Conn) map[string]Transport {
	return map[string]Transport{scheme: inherited{nc}}
}

func (t inherited) Dial(context.Context, string, *Config) (net.Conn, error) { return t.nc, nil }

func (t inherited) Listen(context.Context, string, *Config) (net.Listener, error) {
	return &inheritedListener{nc: t.nc, closed: make(chan struct{})}, nil
}

// inheritedListener gives out its connection once.
type inheritedListener struct {
	nc     net.Conn
	once   sync.Once // for nc
	end    sync.Once
	closed chan struct{}
}

func (l *inheritedListener) Accept() (nc net.Conn, err error) {
	l.once.Do(func() { nc = l.nc })
	if nc == nil {
		<-l.closed
		err = net.ErrClosed
	}
	return nc, err
}

// Close also closes the connection if it was not given out.
func (l *inheritedListener) Close() error {
	l.end.Do(func() { close(l.closed) })
	l.once.Do(func() { l.nc.Close() })
	return nil
}

func (l *inheritedListener) Addr() net.Addr { return l.nc.LocalAddr() }

// inheritedAddr is the address of a connection that has none: its scheme, and
// what the launch line calls it.
type inheritedAddr struct{ scheme, name string }

func (a inheritedAddr) Network() string { return a.scheme }
func (a inheritedAddr) String() string  { return a.name }
