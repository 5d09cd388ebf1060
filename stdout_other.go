//go:build !unix && !windows

package plugwire

func stdoutToStderr() {}
