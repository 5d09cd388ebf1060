package plugwire

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"runtime"
	"slices"
	"strings"
)

// A Transport turns addresses of one scheme into connections. The built-in ones
// are "unix", "npipe" (named pipes of Windows) and "tcp"; Config.Custom adds others. The connections may be of any
// kind that keeps the promises of net.Conn; those with a SyscallConn are faster.
//
// Listen returns a listener whose Addr, written as scheme + ":" or "://" +
// String, can be dialled. cfg is never nil and has its defaults filled in.
type Transport interface {
	Listen(ctx context.Context, addr string, cfg *Config) (net.Listener, error)
	Dial(ctx context.Context, addr string, cfg *Config) (net.Conn, error)
}

// builtinTransports are the transports of this package, by scheme. Those that
// Transports does not list have to be asked for by address.
var builtinTransports = map[string]Transport{
	"unix":  unixTransport{},
	"npipe": npipeTransport{},
	"tcp":   tcpTransport{},
}

// Transports returns the schemes of the built-in transports that this platform
// and build offer, best first.
func Transports() []string {
	switch runtime.GOOS {
	case "windows":
		return []string{"npipe", "tcp"}
	case "js", "wasip1", "plan9":
		return nil
	}
	return []string{"unix", "tcp"}
}

// transportOf finds the transport of an address, a URI whose scheme names it.
func (c *Config) transportOf(op, addr string) (Transport, error) {
	scheme, _, ok := strings.Cut(addr, ":")
	if !ok || scheme == "" {
		return nil, &Error{Code: InvalidArgument, Op: op, Addr: addr, Message: "the address has no scheme",
			Hint: `write "unix:///path", "unix:", "npipe:////./pipe/name" or "tcp://host:port"`}
	}
	if c.Transports != nil && !slices.Contains(c.Transports, scheme) {
		return nil, &Error{Code: PermissionDenied, Op: op, Addr: addr,
			Message: fmt.Sprintf("%s allows %q only", c.orderName(), c.Transports)}
	}
	if t, ok := c.Custom[scheme]; ok {
		return t, nil
	}
	if t, ok := builtinTransports[scheme]; ok {
		if _, known := transportTraits[scheme]; known { // of others, a connection tells
			if why := c.misses(scheme, c.hasTLS(), thisPlatform()); why != "" {
				return nil, &Error{Code: PermissionDenied, Op: op, Addr: addr, Message: "Config." + why,
					Hint: "use another address, or set Config.TLS: that is encrypted, and verifies the peer"}
			}
		}
		return t, nil
	}
	return nil, &Error{Code: Unimplemented, Op: op, Addr: addr, Message: fmt.Sprintf("no transport %q", scheme),
		Hint: fmt.Sprintf("built in are %q", Transports())}
}

// schemeOf returns an address's scheme.
func schemeOf(addr string) string {
	scheme, _, _ := strings.Cut(addr, ":")
	return scheme
}

// addrURI writes a listener's or connection's address as the URI that dials it.
func addrURI(a net.Addr) string {
	switch a.Network() {
	case "unix":
		return "unix://" + a.String()
	case "tcp", "npipe":
		return a.Network() + "://" + a.String()
	}
	return a.Network() + ":" + a.String()
}

// errnoCode gives a system error its code.
type errnoCode struct {
	err  error
	code Code
}

// sysError makes an *Error of what the system said to an attempt to do op with
// addr. An *Error among the causes stays as it is.
func sysError(op, addr string, err error, hint string) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	var oe *net.OpError
	if errors.As(err, &oe) {
		err = oe.Err // what it adds is said already
	}
	return &Error{Code: sysCode(op, err), Op: op, Addr: addr, Err: err, Hint: hint}
}

func sysCode(op string, err error) Code {
	if code := CodeOf(err); code != Unknown {
		return code
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return PermissionDenied
	case op == "listen" && errors.Is(err, fs.ErrNotExist):
		return NotFound
	}
	for _, c := range errnoCodes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return Unavailable
}

// setBuffers sets the sizes of a socket's buffers in the kernel; 0 or less leaves
// them. A size is a wish: Linux lowers one that is above its limit, other systems
// refuse it, and some refuse any when the peer has gone already. None of that is
// a reason to give up the connection.
func setBuffers(c interface {
	SetReadBuffer(bytes int) error
	SetWriteBuffer(bytes int) error
}, size int) {
	if size > 0 {
		_ = c.SetReadBuffer(size)
		_ = c.SetWriteBuffer(size)
	}
}
