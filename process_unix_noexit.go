//go:build unix && !linux && !darwin && !dragonfly && !freebsd && !netbsd && !openbsd

package plugwire

func exitOf(int) int { return -1 }
