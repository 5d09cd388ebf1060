//go:build unix && !linux && !darwin

package plugwire

import "errors"

func groupMembers(int) ([]int, error) { return nil, errors.ErrUnsupported }
