//go:build !unix

package lockfile

import (
	"errors"
	"os"
)

const openFlags = 0

func checkOwner(f *os.File) error { return refused(f.Name(), "cannot be checked on this platform") }

func lock(*os.File) error { return errors.ErrUnsupported }

func unlock(*os.File) error { return errors.ErrUnsupported }
