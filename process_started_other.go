//go:build !linux && !darwin && !windows

package plugwire

import "errors"

// startedAt cannot tell.
func startedAt(int) (string, error) { return "", errors.ErrUnsupported }
