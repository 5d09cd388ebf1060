//go:build !unix

package sockio

import "errors"

// Available is false: neither Read nor Write works.
const Available = false

func Write(uintptr, []byte, bool) (int, error) { return 0, errors.ErrUnsupported }

func Read(uintptr, []byte, bool) (int, bool, error) { return 0, false, errors.ErrUnsupported }
