//go:build !unix

package plugwire

import (
	"errors"
	"net"
	"os"
)

const haveSocketpair = false

func newSocketpair() (near net.Conn, far *os.File, err error) {
	return nil, nil, errors.ErrUnsupported
}

func inheritedSocketpair(int) (net.Conn, error) { return nil, errors.ErrUnsupported }
