//go:build !unix

package plugwire

import "errors"

// canReadRaw is false: reads are made through net.Conn.
const canReadRaw = false

func readOnce(uintptr, []byte) (int, bool, error) { return 0, false, errors.ErrUnsupported }
