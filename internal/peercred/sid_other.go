//go:build !windows

package peercred

import "errors"

// OwnSID fails: SIDs are of Windows.
func OwnSID() (string, error) { return "", errors.ErrUnsupported }
