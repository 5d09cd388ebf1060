//go:build !linux

package tick

import "time"

// timer is not there on this platform.
type timer struct{}

func (*timer) open()                    {}
func (*timer) sleep(time.Duration) bool { return false }
func (*timer) close()                   {}
