//go:build !unix

package batch

import "errors"

// canTry is false: every batch is written by the Writer's goroutine.
const canTry = false

func writeOnce(uintptr, []byte) (int, error) { return 0, errors.ErrUnsupported }
