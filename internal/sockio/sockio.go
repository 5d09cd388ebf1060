// Package sockio makes the system calls of a connection on its non-blocking
// descriptor. Each is one attempt, which does not wait.
package sockio
