//go:build !unix

package plugwire

import "errors"

// privateDir is for Unix sockets, of which there are none here.
type privateDir struct{}

func newPrivateDir(string) (*privateDir, error) { return nil, errors.ErrUnsupported }

func adoptPrivateDir(string) *privateDir { return nil }

func (*privateDir) name() string { return "" }

func (*privateDir) remove() {}
