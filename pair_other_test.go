//go:build !unix && !windows

package plugwire

import (
	"net"
	"testing"
)

const underWine = false

const localTransport = "unix"

func unixPair(testing.TB) (a, b net.Conn) { return net.Pipe() }
