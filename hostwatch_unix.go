//go:build unix

package plugwire

import (
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// hostEnd is nil when hostGone is.
var hostEnd *hostWatch

// hostWatch watches the host.
type hostWatch struct {
	stdin    int // a duplicate: the number 0 may get another meaning
	exit     int // a descriptor that is readable when the host has exited, which is the parent; or -1
	parent   int // the host or a wrapper, which dies with it
	host     int // or 0 when it cannot be seen from here
	ownGroup bool
}

const hostPoll = 10 * time.Millisecond

// watchHost is called in an init function, thus on the main thread.
func watchHost(order *launchOrder) {
	if !isPipe(os.Stdin) {
		return
	}
	fd, err := unix.Dup(0)
	if err != nil {
		return
	}
	unix.CloseOnExec(fd) // nobody starts a process yet
	w := &hostWatch{stdin: fd, exit: -1, parent: os.Getppid(), host: order.host, ownGroup: order.ownGroup}
	if w.host > 0 && unix.Kill(w.host, 0) == unix.ESRCH {
		w.host = 0
	}
	if w.parent == w.host {
		// Behind a wrapper the number may be that of another namespace's process.
		if w.exit = exitOf(w.host); os.Getppid() != w.host { // or of a successor, then the end of stdin is to come
			w.exit = -1
		}
	}
	// A host that has died until now has this process killed; from now on it is
	// no longer the parent.
	if order.deathSignal && w.parent == order.host {
		wakeWithParent()
	}
	outliveHost()
	hostEnd, hostGone = w, make(chan struct{})
	go w.run()
}

func closeOnExec(fd int) { unix.CloseOnExec(fd) }

// outliveHost keeps this process from ending with what it prints to: a host's
// death breaks stdout and stderr, and a line printed there would end a Go program
// at once. Caught, that is an error of Write.
func outliveHost() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

func (w *hostWatch) run() {
	for !w.gone(-1) {
		time.Sleep(hostPoll)
	}
	self := os.Getpid()
	if w.ownGroup {
		self = 0 // the group
	}
	// Set first: where every processor is busy, each step waits for its turn.
	time.AfterFunc(hostGrace, func() { syscall.Kill(self, syscall.SIGKILL) })
	if w.ownGroup {
		killOthers()
	}
	close(hostGone)
}

// gone reports whether the host is. It waits for the end of stdin or of the host
// first, for so many milliseconds, or without limit when negative.
func (w *hostWatch) gone(wait int) bool {
	fds := []unix.PollFd{{Fd: int32(w.stdin), Events: unix.POLLHUP}, // which only macOS must be asked for
		{Fd: int32(w.exit), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, wait); err != nil {
		return false
	}
	return fds[1].Revents&unix.POLLIN != 0 || fds[0].Revents&unix.POLLHUP != 0 && (w.host == 0 || !w.there())
}

// there reports whether the host is. One that died is no parent any more, even
// if nobody has reaped it; behind a wrapper its number says it.
func (w *hostWatch) there() bool {
	return os.Getppid() == w.parent && (w.parent == w.host || unix.Kill(w.host, 0) != unix.ESRCH)
}

// awaitHostsEnd is for who may be about to end the process. If the host is gone,
// it kills the others of the group: run may not have come to that, or they were
// started later. Who suspects that it is has some time spent to see it, since the
// kernel closes a host's descriptors one after the other.
func awaitHostsEnd(suspected bool) {
	w := hostEnd
	if w == nil || !w.ownGroup {
		return
	}
	for start := time.Now(); ; time.Sleep(hostPoll) {
		if w.gone(0) {
			killOthers()
			return
		}
		if !suspected || time.Since(start) > hostGrace {
			return
		}
	}
}

// killOthers kills the other processes of this process's group, and those that
// they start meanwhile. Where a group cannot be listed it gets SIGTERM: a program
// that ends within hostGrace then leaves behind who ignores that.
func killOthers() {
	group, err := unix.Getpgid(0)
	if err != nil {
		return
	}
	killed := map[int]bool{os.Getpid(): true}
	for more := true; more; {
		more = false
		members, err := groupMembers(group)
		if err != nil {
			syscall.Kill(0, syscall.SIGTERM)
			return
		}
		for _, pid := range members {
			if !killed[pid] {
				killed[pid], more = true, true
				killMember(pid, group)
			}
		}
	}
}

// killMember kills a process if it is of the group. The handle, where there are
// such, comes first: then the number cannot become another process's in between.
func killMember(pid, group int) {
	p, err := os.FindProcess(pid)
	if err != nil {
		return
	}
	if g, err := unix.Getpgid(pid); err == nil && g == group {
		p.Kill()
	}
	p.Release()
}
