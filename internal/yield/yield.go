// Package yield lets other work go first.
package yield

import "runtime"

// Thread lets other threads that wait for this processor run, if the system can.
func Thread() { thread() }

// All lets other threads that wait for this processor run, and then other
// goroutines that wait for this thread. A goroutine that is busy for long without
// ever waiting holds both up for as long as the kernel's slice and the runtime's
// allow, which is milliseconds.
func All() {
	thread()
	runtime.Gosched()
}
