package plugwire

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
)

// tcpTransport connects over TCP. Addresses are "tcp://host:port", with an IPv6
// address in brackets. An empty host is 127.0.0.1; to listen, port 0 or none
// lets the system pick one. "tcp:" listens where cfg.TCP says, by default as
// "tcp://127.0.0.1:0" does.
//
// As there is nothing that says who is on the other side, only loopback
// addresses are used unless cfg.TLS or cfg.TCP.Insecure is set. What counts is the address
// that a name resolved to, and it is checked before the socket is bound or
// connected.
type tcpTransport struct{}

// Listen binds the first address of the host.
func (tcpTransport) Listen(ctx context.Context, addr string, cfg *Config) (net.Listener, error) {
	hostPort, err := tcpHostPort("listen", addr)
	if err != nil {
		return nil, err
	}
	lc := net.ListenConfig{
		KeepAlive:       -1, // as KeepAliveConfig says
		KeepAliveConfig: tcpKeepAlive(cfg),
		Control:         loopbackOnly("listen", addr, cfg),
	}
	lc.SetMultipathTCP(false) // Go's default for listeners: slower, and for addresses that change
	listen := func(hostPort string) (net.Listener, error) { return lc.Listen(ctx, "tcp", hostPort) }
	var ln net.Listener
	if tcpRest(addr) == "" {
		ln, err = cfg.TCP.listen(listen)
		err = setupError("listen", addr, err)
	} else {
		ln, err = listen(hostPort)
	}
	if err != nil {
		e := sysError("listen", addr, err, "")
		if e.Code == AlreadyExists && e.Hint == "" {
			e.Hint = "another process has this port; port 0 picks a free one"
		}
		return nil, e
	}
	return &tcpListener{ln: ln.(*net.TCPListener), cfg: cfg.TCP}, nil
}

// Dial tries the addresses of the host until one answers or ctx ends; it sets no
// limit of its own.
func (tcpTransport) Dial(ctx context.Context, addr string, cfg *Config) (net.Conn, error) {
	hostPort, err := tcpHostPort("dial", addr)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{
		KeepAlive:       -1, // as KeepAliveConfig says
		KeepAliveConfig: tcpKeepAlive(cfg),
		Control:         loopbackOnly("dial", addr, cfg),
	}
	d.SetMultipathTCP(false)
	c, err := d.DialContext(ctx, "tcp", hostPort)
	if err != nil {
		e := sysError("dial", addr, err, "")
		if e.Code == Unavailable && e.Hint == "" {
			e.Hint = "is the server running, and is the address the one it listens on?"
		}
		return nil, e
	}
	tc := c.(*net.TCPConn)
	setTCP(tc, cfg.TCP)
	return tc, nil
}

// tcpRest returns what an address says, "" when it leaves all to Config.TCP.
func tcpRest(addr string) string {
	return strings.TrimPrefix(strings.TrimPrefix(addr, "tcp:"), "//")
}

// tcpHostPort returns the host and port of an address as package net wants them.
func tcpHostPort(op, addr string) (string, error) {
	rest := tcpRest(addr)
	bad := func(message string, cause error) (string, error) {
		return "", &Error{Code: InvalidArgument, Op: op, Addr: addr, Message: message, Err: cause,
			Hint: `write "tcp://host:port", an IPv6 address in brackets`}
	}
	if rest == "" {
		rest = ":"
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		return bad("", err)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	n := uint64(0)
	if port != "" {
		if n, err = strconv.ParseUint(port, 10, 16); err != nil {
			return bad("the port is not a number up to 65535", nil)
		}
	}
	if n == 0 && op == "dial" {
		return bad("there is no port to dial", nil)
	}
	return net.JoinHostPort(host, strconv.FormatUint(n, 10)), nil
}

// loopbackOnly returns what package net calls with each address before it binds
// or connects a socket.
func loopbackOnly(op, addr string, cfg *Config) func(network, address string, rc syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error { return cfg.mayUse(op, addr, address) }
}

// mayUse refuses an address beyond loopback, unless something protects what is
// sent there or nothing needs to.
func (c *Config) mayUse(op, addr, address string) error {
	ap, err := netip.ParseAddrPort(address)
	if c.hasTLS() || c.TCP.Insecure || err == nil && ap.Addr().Unmap().IsLoopback() {
		return nil
	}
	return &Error{Code: PermissionDenied, Op: op, Addr: addr,
		Message: address + " is not a loopback address, and without TLS anybody on the way can read and forge messages",
		Hint:    "use 127.0.0.1 or [::1], set Config.TLS, or set Config.TCP.Insecure to allow plaintext"}
}

func tcpKeepAlive(cfg *Config) net.KeepAliveConfig {
	d := cfg.TCP.KeepAlive
	if d <= 0 {
		return net.KeepAliveConfig{}
	}
	return net.KeepAliveConfig{Enable: true, Idle: d, Interval: d}
}

// setTCP applies the settings that package net does not. Its own default is
// TCP_NODELAY.
func setTCP(c *net.TCPConn, cfg TCPConfig) {
	if cfg.Delay {
		_ = c.SetNoDelay(false) // a broken connection says so when it is used
	}
	setBuffers(c, cfg.BufferSize)
}

// tcpListener accepts connections with the same settings as dialled ones have.
type tcpListener struct {
	ln        *net.TCPListener
	cfg       TCPConfig
	keepAlive *net.KeepAliveConfig // to be set, or nil when ln does
}

// Accept returns a *net.TCPConn.
func (l *tcpListener) Accept() (net.Conn, error) {
	c, err := l.ln.AcceptTCP()
	if err != nil {
		return nil, err
	}
	if l.keepAlive != nil {
		_ = c.SetKeepAliveConfig(*l.keepAlive)
	}
	setTCP(c, l.cfg)
	return c, nil
}

func (l *tcpListener) Addr() net.Addr { return l.ln.Addr() }

// Close stops listening. Connections live on.
func (l *tcpListener) Close() error { return l.ln.Close() }
