// Package sockio makes the system calls of a connection on its non-blocking
// descriptor. Each is one attempt, which does not wait.
//
// Where it can, it makes them without telling Go's scheduler, which prepares for a
// call that waits. It takes the processor away from a goroutine whose call lasts more
// than 20 us, as copying 64 KiB may, and a call of a process that was idle wakes its
// monitor (sysmon), a thread that then looks every 20 us for such goroutines and for
// those that compute for too long. One-way messages and streams of 64 bytes go 1.2
// times as fast without (BenchmarkOneWay, BenchmarkStream).
//
// The monitor has to be woken all the same: while it sleeps, a goroutine that computes
// keeps its processor from all others. It goes to sleep only when every goroutine
// waits, and it wakes when the next timer is due. So whoever was woken because a
// descriptor is ready tells the scheduler of its first call, or there is a timer:
// while much goes through the process's connections, flow has one that is due soon.
// Calls of goroutines that have not waited since are nobody's first.
package sockio
