//go:build !unix

package plugwire

import (
	"net"
	"testing"
)

func unixPair(testing.TB) (a, b net.Conn) { return net.Pipe() }
