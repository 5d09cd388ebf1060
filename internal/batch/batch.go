// Package batch gathers what many goroutines have to send into few writes.
//
// A Writer has one pending buffer, appended to under its lock, and one flusher
// at a time, which takes the whole buffer and writes it while others append to
// the next. Any goroutine may be the flusher for one attempt that does not
// block (Flush); what the kernel does not take at once is left to a goroutine
// that is there meanwhile, unless who flushes is ready to wait itself (FlushWaiting).
package batch

import (
	"context"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/plugwire/plugwire/internal/sockio"
	"github.com/plugwire/plugwire/internal/spinlock"
)

const (
	// High is how many bytes may be pending before those who append must wait.
	High = 256 << 10
	// eager is how many bytes make a batch worth writing without waiting for more.
	eager = 64 << 10
	// keep bounds the buffers that are reused; a larger one goes back to the collector.
	keep = 1 << 20
)

type buffer struct{ b []byte }

var buffers = sync.Pool{New: func() any { return &buffer{make([]byte, 0, eager)} }}

// Config says what a Writer needs of its owner.
type Config struct {
	// Control appends the frames that are derived from state rather than
	// queued. It is called under the lock each time a batch is made.
	Control func(dst []byte) []byte
	// Seal, when set, appends to dst what the connection is to carry for plain,
	// which is encrypted. It is called without the lock, for one batch after the
	// other, and its dst is not used again before it is written.
	Seal func(dst, plain []byte) ([]byte, error)
	// Go has a goroutine call Run, at once, and does not wait. It is called under
	// the lock.
	Go func(*Writer)
	// Failed is told, once and without the lock, of the error that ended writing.
	Failed func(error)
	// Timeout is how long a write may make no progress before it fails.
	Timeout time.Duration
}

// A Writer batches writes to one connection.
type Writer struct {
	conn net.Conn
	raw  syscall.RawConn // nil when conn has no non-blocking attempt
	cfg  Config

	// The attempt's argument and results, owned by who holds writing. They are
	// fields so that the callback is made once.
	tryFunc  func(fd uintptr) bool
	tryBuf   []byte
	tryWait  context.Context // nil: one attempt
	tryTimer bool            // a write deadline is set: the attempt has been waiting
	tryN     int
	tryErr   error

	// The lock is held for appending, never for a system call. Owners may keep
	// state of their own under it (Lock, Unlock).
	mu       spinlock.Mutex
	pending  *buffer // nil when empty
	out      *buffer // the batch that the holder of writing sends
	rest     []byte  // what of out is still to be sent
	sealed   bool    // out is what Seal made, so that positions in it mean nothing
	writing  bool    // out has an owner
	left     bool    // which is Run
	kicked   bool    // Run is to look for something to write
	running  bool    // it is there, or on its way
	promised bool    // somebody who yielded will flush
	pause    int     // turns that do not yield
	control  bool    // Control has something to append
	taken    uint64  // bytes that have left pending
	sent     uint64  // bytes that the connection has taken
	writes   uint64  // successful write calls
	sizes    Sizes   // of them
	stalls   uint64  // how often WaitRoom was called
	room     Gate    // those who wait for pending to shrink
	limit    int     // how many bytes may be pending for those who do not wait
	waited   bool    // who asks next has waited, unless it finds another reason to
	scope    *Scope  // of who writes and waits, if it has one
	poked    bool    // it has ended meanwhile
	idle     []chan struct{}
	waiters  []*waiter // that nobody uses
	err      error
}

// New returns a Writer to conn.
func New(conn net.Conn, cfg Config) *Writer {
	w := &Writer{conn: conn, cfg: cfg, limit: High}
	if sc, ok := conn.(syscall.Conn); ok && sockio.Available {
		if raw, err := sc.SyscallConn(); err == nil {
			w.raw, w.tryFunc = raw, w.try
		}
	}
	return w
}

// Lock takes the lock that guards the pending buffer.
func (w *Writer) Lock() { w.mu.Lock() }

// TryLock takes the lock if it is free. It costs no call, where that matters: Lock does.
func (w *Writer) TryLock() bool { return w.mu.TryLock() }

// Unlock releases it.
func (w *Writer) Unlock() { w.mu.Unlock() }

// The methods from here on are called with the lock held.

// Buffer returns the pending buffer to append to; give the result to Put.
func (w *Writer) Buffer() []byte {
	if w.pending == nil {
		w.pending = buffers.Get().(*buffer)
		w.pending.b = w.pending.b[:0]
	}
	return w.pending.b
}

// Put stores the buffer that Buffer returned, with what was appended to it.
func (w *Writer) Put(b []byte) { w.pending.b = b }

// Extend makes the pending buffer n bytes longer and returns those to fill in,
// or nil when there is no room, or no buffer that is large enough.
func (w *Writer) Extend(n int) []byte {
	p := w.pending
	if p == nil || len(p.b)+n > min(w.limit, cap(p.b)) {
		return nil
	}
	at := len(p.b)
	p.b = p.b[:at+n]
	return p.b[at:]
}

// Attended reports that somebody is about to write what is pending, so that Queue
// would only release the lock.
func (w *Writer) Attended() bool { return w.writing || w.kicked && w.Len() < eager }

// Queue releases the lock after something was appended for which nobody waits:
// it is written when a batch is full, as by FlushWaiting, or soon by Run.
func (w *Writer) Queue(ctx context.Context) {
	full := false
	if !w.writing {
		if full = w.Len() >= eager; !full && !w.kicked {
			w.Kick()
		}
	}
	w.mu.Unlock()
	if full {
		w.flush(ctx)
	}
}

// Len returns how many bytes are pending.
func (w *Writer) Len() int {
	if w.pending == nil {
		return 0
	}
	return len(w.pending.b)
}

// Position returns the offset in the connection's byte stream behind the last
// byte appended.
func (w *Writer) Position() uint64 { return w.taken + uint64(w.Len()) }

// Sent returns how many bytes the connection has taken; with Seal, whole batches.
func (w *Writer) Sent() uint64 { return w.sent }

// Gone returns how many bytes may have reached the connection: all of a batch
// that is being written count. After Stop the number does not grow.
func (w *Writer) Gone() uint64 {
	if w.writing {
		return w.taken
	}
	return w.sent
}

// Sizes counts writes by their bytes: less than 64<<i are at index i, unless at one
// before; the last has all larger ones too.
type Sizes = [14]uint64

// Sizes returns how many bytes the writes took.
func (w *Writer) Sizes() Sizes { return w.sizes }

// Stalls returns how often somebody had to wait for room.
func (w *Writer) Stalls() uint64 { return w.stalls }

// Writes returns how many writes have been made.
func (w *Writer) Writes() uint64 { return w.writes }

// Err returns the error that ended writing, or nil.
func (w *Writer) Err() error { return w.err }

// Busy reports that a batch is being written.
func (w *Writer) Busy() bool { return w.writing }

// Eager reports that what is pending is worth a write by itself, that nobody is
// writing, and that Flush would: it does not where only Run can. After the end
// nothing is worth one.
func (w *Writer) Eager() bool {
	return w.raw != nil && !w.writing && w.Len() >= eager && w.err == nil
}

// Signal makes the next batch ask Control, and a batch be made though nothing is pending.
func (w *Writer) Signal() { w.control = true }

// Kick has Run write what is pending, soon.
func (w *Writer) Kick() {
	w.kicked = w.err == nil
	if w.kicked && !w.running {
		w.running = true
		w.cfg.Go(w)
	}
}

// HasRoom reports whether n more bytes may be appended at once. Those who do
// not wait in turn leave the last quarter to those who do.
func (w *Writer) HasRoom(n int) bool {
	have, limit := w.Len(), w.limit
	if w.waited {
		w.waited, limit = false, High
	}
	return have == 0 || have+n <= limit
}

// WaitRoom waits until n bytes may be appended: it returns with the lock held
// and nil, or the context's or the Writer's error. It waits at least until what is
// pending now is being written: in the last quarter there would be room for one
// message, and the next wait.
func (w *Writer) WaitRoom(ctx context.Context, n int) error {
	if !w.writing {
		w.Kick()
	}
	w.stalls++
	w.limit = High * 3 / 4
	taken := w.taken
	err := w.Wait(ctx, &w.room, func() bool {
		have := w.Len()
		return have == 0 || have+n <= High && w.taken > taken
	})
	if w.room.Empty() {
		w.limit = High
	}
	w.waited = err == nil
	return err
}
