//go:build unix

package plugwire

// stdoutToStderr moves descriptor 1, whoever writes to it, to where stderr goes.
// Without a stderr it stays where it is, and the host reads it.
func stdoutToStderr() { dup2(2, 1) }
