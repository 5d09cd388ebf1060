package plugwire

import (
	"sync"

	"github.com/plugwire/plugwire/internal/bubble"
)

// shared is what the connections of a process have in common. A connection that is
// made in a bubble of testing/synctest has its own, so that no channel and no
// goroutine of the bubble meets others.
type shared struct {
	tokens     sync.Pool // of chan struct{}, for outCall.done
	callGroups sync.Pool // of *callGroup
	monitor    monitor
}

func newShared() *shared {
	s := new(shared)
	s.tokens.New = func() any { return make(chan struct{}, 1) }
	s.callGroups.New = func() any { return &callGroup{done: make(chan struct{}, 1)} }
	return s
}

var ofProcess = newShared()

// sharedHere returns what a connection shares that is over when done is closed.
func sharedHere(done <-chan struct{}) *shared {
	if !bubble.Inside() {
		return ofProcess
	}
	s := newShared()
	s.monitor.only = done
	return s
}
