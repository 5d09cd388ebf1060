//go:build !linux && !darwin && !freebsd && !openbsd && !netbsd && !windows

package peercred

import "errors"

func ofSocket(uintptr) (Cred, error) { return unknown, errors.ErrUnsupported }
