//go:build !linux

package plugwire

// descendsFrom is for systems that tell; what they do not tell is no.
func descendsFrom(int, int) bool { return false }
