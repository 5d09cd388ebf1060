//go:build unix && !linux && !darwin && !dragonfly && !freebsd && !netbsd && !openbsd

package plugwire

import "os"

func exitOf(int) int { return -1 }

func awaitExit(*os.Process) bool { return false }
