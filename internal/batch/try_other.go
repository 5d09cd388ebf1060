//go:build !unix

package batch

import "errors"

// canTry is false: Run writes every batch.
const canTry = false

func writeOnce(uintptr, []byte) (int, error) { return 0, errors.ErrUnsupported }
