//go:build !linux && !darwin && !freebsd

package peercred

import "errors"

func ofSocket(uintptr) (Cred, error) { return unknown, errors.ErrUnsupported }
