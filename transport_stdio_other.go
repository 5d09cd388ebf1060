//go:build !unix && !windows

package plugwire

import (
	"errors"
	"os"
	"time"
)

func same(a, b *os.File) bool                 { return false }
func orderFromSocket(time.Duration) string    { return "" }
func dupStdin() (*os.File, error)             { return nil, errors.ErrUnsupported }
func replaceStdin(f *os.File) error           { return f.Close() }
func dupStdio() (in, out *os.File, err error) { return nil, nil, errors.ErrUnsupported }
