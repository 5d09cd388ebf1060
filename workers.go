package plugwire

import (
	"slices"
	"sync"
)

// runner is a piece of work for a worker.
type runner interface{ run() }

// workers are goroutines that are used again, since a fresh one pays for
// growing its stack. There are as many as there is work at the same time; some
// stay for the next work, until the monitor finds that they were not needed.
type workers struct {
	parked func() // called when one has become idle

	mu     sync.Mutex
	idle   []chan runner // of workers without work; each holds one
	spare  int           // how many of them have not been needed since the last trim
	closed bool
}

// maxIdleWorkers is how many workers without work a connection keeps.
const maxIdleWorkers = 64

// run has a worker do r. It never waits.
func (w *workers) run(r runner) {
	w.mu.Lock()
	if n := len(w.idle); n > 0 {
		ch := w.idle[n-1]
		w.idle = w.idle[:n-1]
		w.spare = min(w.spare, n-1)
		w.mu.Unlock()
		ch <- r
		return
	}
	w.mu.Unlock()
	go w.work(r)
}

func (w *workers) work(r runner) {
	ch := make(chan runner, 1)
	for {
		r.run()
		w.mu.Lock()
		if w.closed || len(w.idle) == maxIdleWorkers {
			w.mu.Unlock()
			return
		}
		w.idle = append(w.idle, ch)
		w.mu.Unlock()
		w.parked()
		if r = <-ch; r == nil {
			return
		}
	}
}

// trim ends the workers that have been idle since the last trim, and reports
// whether none is idle now.
func (w *workers) trim() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ch := range w.idle[:w.spare] {
		ch <- nil
	}
	w.idle = slices.Delete(w.idle, 0, w.spare)
	w.spare = len(w.idle)
	return w.spare == 0
}

// none reports whether no worker is idle.
func (w *workers) none() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.idle) == 0
}

// close ends the idle workers, and the others as they finish.
func (w *workers) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for _, ch := range w.idle {
		ch <- nil
	}
	w.idle, w.spare = nil, 0
}
