package plugwire

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Where "tcp:" listens, as TCPConfig says.

const (
	leastPort = 1024 // below are the ports of the system's services (RFC 6335, 6)
	mostPort  = 65535
)

// listen has listen bind Port, or the first free port of the range. It begins
// anywhere in the range, so that processes that start together seldom meet.
func (c *TCPConfig) listen(listen func(hostPort string) (net.Listener, error)) (net.Listener, error) {
	first, last, err := c.ports()
	if err != nil {
		return nil, err
	}
	n := last - first + 1
	for i, at := 0, rand.IntN(n); ; i++ {
		port := first + (at+i)%n
		l, err := listen(net.JoinHostPort(cmp.Or(c.Host, "127.0.0.1"), strconv.Itoa(port)))
		if n == 1 || err == nil || sysCode("listen", err) != AlreadyExists {
			return l, err
		}
		if i == n-1 {
			return nil, &Error{Code: AlreadyExists, Err: errors.Unwrap(err),
				Message: fmt.Sprintf("all ports from %d to %d are taken (TCP.MinPort, TCP.MaxPort)", first, last)}
		}
	}
}

// ports returns the first and the last port to listen on; both are 0 for any.
func (c *TCPConfig) ports() (first, last int, err error) {
	name := "TCP.Port"
	if first, last = c.Port, c.Port; c.Port == 0 && (c.MinPort != 0 || c.MaxPort != 0) {
		name = "TCP.MinPort and TCP.MaxPort"
		first, last = cmp.Or(c.MinPort, min(leastPort, c.MaxPort)), cmp.Or(c.MaxPort, mostPort)
	}
	switch {
	case first < 0 || last > mostPort || first > last:
		err = &Error{Code: InvalidArgument, Message: fmt.Sprintf("%s: there are no ports from %d to %d", name, first, last)}
	case last != 0 && first < leastPort && !c.LowPorts:
		err = &Error{Code: InvalidArgument, Message: fmt.Sprintf("%s: port %d is below %d", name, first, leastPort),
			Hint: "such ports are for services of the system; to allow it, set Config.TCP.LowPorts"}
	}
	return first, last, err
}
