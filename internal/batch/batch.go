// Package batch gathers what many goroutines have to send into few writes.
//
// A Writer has one pending buffer, appended to under its lock, and one flusher
// at a time, which takes the whole buffer and writes it while others append to
// the next. Any goroutine may be the flusher for one attempt that does not
// block (Flush); what the kernel does not take at once is left to a goroutine
// that is there meanwhile, unless who flushes is ready to wait itself (FlushWaiting).
// A large message for which nothing has to wait is written from where it is (QueueDirect).
package batch

import (
	"context"
	"errors"
	"io"
	"math/bits"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
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
	tryHead  []byte          // goes before tryBuf
	tryWait  context.Context // nil: one attempt
	tryTimer bool            // a write deadline is set
	tryParts parts           // of both, for the system
	tryN     int
	tryErr   error

	// The lock is held for appending, never for a system call. Owners may keep
	// state of their own under it (Lock, Unlock).
	mu       sync.Mutex
	pending  *buffer // nil when empty
	out      *buffer // the batch that the holder of writing sends
	rest     []byte  // what of out is still to be sent
	head     []byte  // of what QueueDirect sends
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
	idle     []chan struct{}
	err      error
}

// New returns a Writer to conn.
func New(conn net.Conn, cfg Config) *Writer {
	w := &Writer{conn: conn, cfg: cfg, limit: High}
	if sc, ok := conn.(syscall.Conn); ok && canTry {
		if raw, err := sc.SyscallConn(); err == nil {
			w.raw, w.tryFunc = raw, w.try
		}
	}
	return w
}

// Lock takes the lock that guards the pending buffer.
func (w *Writer) Lock() { w.mu.Lock() }

// Unlock releases it.
func (w *Writer) Unlock() { w.mu.Unlock() }

// The methods from here to "Flush" are called with the lock held.

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

// Large is from where on a message is worth a write call of its own, which saves
// a copy of it.
const Large = 16 << 10

// Idle reports that nothing is pending and nobody writes, so that QueueDirect may be called.
func (w *Writer) Idle() bool {
	return w.raw != nil && canTryTwo && w.cfg.Seal == nil && !w.writing && w.pending == nil && !w.control && w.err == nil
}

// Head returns n bytes to fill in for QueueDirect.
func (w *Writer) Head(n int) []byte {
	if cap(w.head) < n {
		w.head = make([]byte, n)
	}
	return w.head[:n]
}

// QueueDirect releases the lock, as Queue does, and writes head and body from where
// they are, waiting for the connection to take them; what is left when ctx ends is
// copied.
func (w *Writer) QueueDirect(ctx context.Context, head, body []byte) {
	w.taken += uint64(len(head) + len(body))
	w.writing, w.sealed = true, false
	w.mu.Unlock()
	w.tryHead = head
	n, err := w.attempt(body, nil)
	w.tryHead = nil
	w.mu.Lock()
	w.out = buffers.Get().(*buffer)
	rest := body[min(max(n-len(head), 0), len(body)):]
	if n < len(head) { // hardly ever
		w.out.b = append(append(w.out.b[:0], head[n:]...), body...)
		rest = w.out.b
	}
	if w.settle(ctx, n, rest, err) {
		w.kickOrIdle()
	} else if w.left { // to Run
		w.out.b = append(w.out.b[:0], w.rest...)
		w.rest = w.out.b
	}
	w.mu.Unlock()
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

// Eager reports that what is pending is worth a write by itself and that
// nobody is writing. After the end nothing is.
func (w *Writer) Eager() bool { return !w.writing && w.Len() >= eager && w.err == nil }

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
// and nil, or the context's or the Writer's error.
func (w *Writer) WaitRoom(ctx context.Context, n int) error {
	if !w.writing {
		w.Kick()
	}
	w.stalls++
	w.limit = High * 3 / 4
	err := w.Wait(ctx, &w.room, func() bool { have := w.Len(); return have == 0 || have+n <= High })
	if w.room.Empty() {
		w.limit = High
	}
	w.waited = err == nil
	return err
}

// take makes the pending bytes the batch to write, if there are any and nobody writes.
func (w *Writer) take() bool {
	if w.writing || w.err != nil || (w.pending == nil && !w.control) {
		return false
	}
	if w.control {
		w.control = false
		w.Put(w.cfg.Control(w.Buffer()))
	}
	if len(w.pending.b) == 0 {
		w.release(&w.pending)
		return false
	}
	w.out, w.pending = w.pending, nil
	w.taken += uint64(len(w.out.b))
	w.rest, w.sealed = w.out.b, false
	w.writing = true
	return true
}

// seal has the batch encrypted, once, where that is asked for. Its caller holds
// writing, without the lock.
func (w *Writer) seal() error {
	if w.cfg.Seal == nil || w.sealed {
		return nil
	}
	to := buffers.Get().(*buffer)
	b, err := w.cfg.Seal(to.b[:0], w.out.b)
	if err != nil {
		return err
	}
	to.b = b
	w.release(&w.out)
	w.out, w.rest, w.sealed = to, b, true
	return nil
}

// wrote accounts for n bytes of the batch, behind which rest is left; when nothing
// is, the batch is over and who waits for room goes on.
func (w *Writer) wrote(n int, rest []byte) (whole bool) {
	w.writes++
	w.sizes[min(bits.Len(uint(n)/64), len(w.sizes)-1)]++
	if w.rest = rest; !w.sealed {
		w.sent += uint64(n)
	}
	if len(w.rest) > 0 {
		return false
	}
	w.sent = w.taken
	w.writing = false
	w.release(&w.out)
	w.Open(&w.room)
	return true
}

// broke accounts for the n bytes that the connection took before the write
// failed. The batch stays: nobody writes it any more.
func (w *Writer) broke(n int) {
	if w.sent += uint64(max(n, 0)); w.cfg.Seal != nil {
		w.sent = w.taken // it may have gone
	}
	w.writing, w.left = false, false
}

func (w *Writer) release(b **buffer) {
	if cap((*b).b) <= keep {
		buffers.Put(*b)
	}
	*b = nil
}

// idleNow tells those who wait in Drain when nothing is left to write.
func (w *Writer) idleNow() {
	if w.idle != nil && !w.writing && w.Len() == 0 && !w.control {
		for _, ch := range w.idle {
			close(ch)
		}
		w.idle = nil
	}
}

// A Turn says what a goroutine that appended something, and will now wait for an
// answer, does for it to be sent.
type Turn int

const (
	Now     Turn = iota // write
	Yield               // let others append too, then write
	Nothing             // somebody else has promised to
)

// slowYield is how long a yield takes when the processors are busy with other
// work, and yieldPause how many turns then write at once. A yield is only worth
// it while it costs little.
const (
	slowYield  = 4 * time.Millisecond
	yieldPause = 4096
)

// NoYield makes every turn Now. It is for measuring what the yield is worth.
var NoYield bool

// Turn decides on the turn of who has just appended; alone says that nobody
// else is likely to append soon.
func (w *Writer) Turn(alone bool) Turn {
	switch {
	case alone || NoYield:
		return Now
	case w.pause > 0:
		w.pause--
		return Now
	case w.promised:
		return Nothing
	}
	w.promised = true
	return Yield
}

// FlushTurn, called without the lock, takes the turn.
func (w *Writer) FlushTurn(t Turn) {
	switch t {
	case Yield:
		start := time.Now()
		runtime.Gosched()
		if time.Since(start) > slowYield {
			w.mu.Lock()
			w.pause = yieldPause
			w.mu.Unlock()
		}
		w.Flush()
	case Now:
		w.Flush()
	}
}

// FlushControl is Flush when Control has something to append, for a goroutine
// that has appended nothing itself.
func (w *Writer) FlushControl() {
	w.mu.Lock()
	due := w.control
	w.mu.Unlock()
	if due {
		w.Flush()
	}
}

// Flush, called without the lock, writes what is pending unless somebody else
// is writing. It never waits: what the connection does not take at once is
// left to Run, and so is what comes in during two batches.
func (w *Writer) Flush() { w.flush(noWait) }

// noWait is the context of who does not wait.
var noWait context.Context

// FlushWaiting is Flush for a goroutine that would wait for room anyway: it writes
// the whole batch itself, which saves a change of goroutines whenever the
// connection is full. When ctx ends, the rest is left to Run.
func (w *Writer) FlushWaiting(ctx context.Context) { w.flush(ctx) }

func (w *Writer) flush(ctx context.Context) {
	w.mu.Lock()
	w.promised = false
	if w.raw == nil {
		if !w.writing && (w.Len() > 0 || w.control) {
			w.Kick()
		}
		w.mu.Unlock()
		return
	}
	for range 2 {
		if !w.take() {
			w.idleNow()
			w.mu.Unlock()
			return
		}
		w.mu.Unlock()
		n, err := 0, w.seal()
		if err == nil {
			n, err = w.attempt(w.rest, nil)
		}
		w.mu.Lock()
		if !w.settle(ctx, n, w.rest[n:], err) {
			w.mu.Unlock()
			return
		}
	}
	w.kickOrIdle()
	w.mu.Unlock()
}

// settle accounts for an attempt to write a batch that wrote n bytes, and sees to
// it that the rest is written, by itself when ctx is not nil. It reports whether
// that has been done. It is called and returns with the lock held.
func (w *Writer) settle(ctx context.Context, n int, rest []byte, err error) (whole bool) {
	if err == nil {
		whole = w.wrote(n, rest)
	}
	if err == nil && !whole && ctx != nil {
		whole, n, err = w.finish(ctx)
	}
	switch {
	case err != nil:
		w.broke(n)
		w.mu.Unlock()
		w.Fail(err)
		w.mu.Lock()
	case !whole:
		w.left = true
		w.Kick()
	}
	return whole
}

// kickOrIdle is what follows a batch.
func (w *Writer) kickOrIdle() {
	if w.Len() > 0 || w.control {
		w.Kick()
	} else {
		w.idleNow()
	}
}

// finish writes the rest of the batch, as the connection takes it, until ctx
// ends; n bytes were taken by the write that failed. It is called and returns
// with the lock held.
func (w *Writer) finish(ctx context.Context) (whole bool, n int, err error) {
	if ctx.Err() != nil {
		return false, 0, nil
	}
	calm := w.pokedBy(ctx)
	for over := false; !over; {
		b := w.rest
		w.mu.Unlock()
		n, err = w.attempt(b, ctx)
		if over = n == len(b) || err != nil || ctx.Err() != nil; over {
			if poked := calm(); poked && n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
				err = nil
			}
		}
		w.mu.Lock()
		if err == nil && n > 0 {
			whole = w.wrote(n, w.rest[n:])
		}
	}
	return whole, n, err
}

// pokedBy has the end of ctx wake up the write that its caller is about to wait in.
// calm takes that back, and reports whether ctx had ended: until it has returned,
// nobody else may write, whom the deadline would hit instead.
func (w *Writer) pokedBy(ctx context.Context) (calm func() (poked bool)) {
	if ctx.Done() == nil {
		return func() bool { return false }
	}
	poked := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		w.conn.SetWriteDeadline(time.Unix(1, 0))
		close(poked)
	})
	return func() bool {
		if stop() {
			return false
		}
		<-poked
		w.conn.SetWriteDeadline(time.Time{})
		return true
	}
}

// Run is for Config.Go alone: it takes over a batch that was left to it, then
// makes batches until nothing is pending.
func (w *Writer) Run() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.kicked {
		w.kicked = false
		for w.err == nil && (w.left || w.take()) {
			w.left = true // ours until it is written
			w.mu.Unlock()
			n, err := 0, w.seal()
			if err == nil {
				n, err = w.write(w.rest)
			}
			w.mu.Lock()
			if err != nil {
				w.broke(n)
				w.mu.Unlock()
				w.Fail(err)
				w.mu.Lock()
				break
			}
			w.left = !w.wrote(n, w.rest[n:])
		}
		w.idleNow()
	}
	w.running = false
}

// write waits until the connection takes some bytes.
func (w *Writer) write(b []byte) (int, error) {
	if w.raw != nil {
		return w.attempt(b, context.Background())
	}
	w.conn.SetWriteDeadline(time.Now().Add(w.cfg.Timeout))
	n, err := w.conn.Write(b)
	w.conn.SetWriteDeadline(time.Time{})
	if n > 0 && errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil // progress: the rest has its own deadline
	}
	if n == 0 && err == nil {
		err = io.ErrShortWrite
	}
	return n, err
}

// attempt writes what the connection takes: without waiting, when 0 bytes are
// no error, or waiting until it takes some or ctx ends; but only a deadline in
// the past, set when it ends, interrupts a wait. Its caller holds writing.
func (w *Writer) attempt(b []byte, wait context.Context) (int, error) {
	w.tryBuf, w.tryWait, w.tryTimer = b, wait, false
	w.tryN, w.tryErr = 0, nil // the callback may not be called
	err := w.raw.Write(w.tryFunc)
	if w.tryTimer {
		w.conn.SetWriteDeadline(time.Time{})
	}
	if err == nil && w.tryErr != nil {
		a := w.conn.RemoteAddr()
		err = &net.OpError{Op: "write", Net: a.Network(), Addr: a, Err: w.tryErr}
	}
	return w.tryN, err
}

// try is the callback of attempt: false has the runtime wait until the
// descriptor is writable and call again.
func (w *Writer) try(fd uintptr) bool {
	if w.tryHead != nil {
		w.tryN, w.tryErr = writeTwo(fd, &w.tryParts, w.tryHead, w.tryBuf)
	} else {
		w.tryN, w.tryErr = writeOnce(fd, w.tryBuf)
	}
	if w.tryN > 0 || w.tryErr != nil || w.tryWait == nil {
		return true
	}
	if !w.tryTimer { // only a write that waits needs a deadline
		w.tryTimer = true
		w.conn.SetWriteDeadline(time.Now().Add(w.cfg.Timeout))
	}
	return w.tryWait.Err() != nil // the deadline that interrupts may have come before this one
}

// Drain writes what is pending and waits until it is written, for at most d.
func (w *Writer) Drain(d time.Duration) error {
	w.Flush()
	w.mu.Lock()
	if w.err != nil || (!w.writing && w.Len() == 0 && !w.control) {
		defer w.mu.Unlock()
		return w.err
	}
	ch := make(chan struct{})
	w.idle = append(w.idle, ch)
	if !w.writing {
		w.Kick()
	}
	w.mu.Unlock()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ch:
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.err
	case <-timer.C:
		return os.ErrDeadlineExceeded
	}
}

// Fail ends writing: nothing more is written, and everyone who waits gets err.
// Only the first call counts.
func (w *Writer) Fail(err error) {
	w.mu.Lock()
	first := w.Stop(err)
	w.mu.Unlock()
	if first && w.cfg.Failed != nil {
		w.cfg.Failed(err)
	}
}

// Stop is Fail under the lock, for an owner that knows: Failed is not told. It
// reports whether it was the first. What Gone says then stays true.
func (w *Writer) Stop(err error) (first bool) {
	if w.err != nil {
		return false
	}
	w.err = err
	for _, ch := range w.idle {
		close(ch)
	}
	w.idle = nil
	w.room.signalAll()
	return true
}
