//go:build !linux && !darwin && !freebsd && !windows

package peercred

import "errors"

func ofSocket(uintptr) (Cred, error) { return unknown, errors.ErrUnsupported }
