//go:build !plan9

package plugwire

import (
	"errors"
	"syscall"
)

// temporary reports whether Accept may succeed later.
func temporary(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return sysCode("accept", err) == ResourceExhausted // as Windows words it
}
