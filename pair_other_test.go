//go:build !unix && !windows

package plugwire

import (
	"net"
	"syscall"
	"testing"
)

const underWine = false

const localTransport = "unix"

const connRefused = syscall.ECONNREFUSED

func unixPair(testing.TB) (a, b net.Conn) { return net.Pipe() }
