package batch

import (
	"context"
	"errors"
	"io"
	"math/bits"
	"net"
	"os"
	"runtime"
	"time"

	"github.com/plugwire/plugwire/internal/sockio"
)

// Batches: who makes one of what is pending, and who writes it. The methods up to
// Turn are called with the lock held, but for seal.

// take makes the pending bytes the batch to write, if there are any and nobody writes,
// and has who waits for room go on.
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
	w.Open(&w.room)
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

// wrote accounts for n bytes of the batch; when nothing is left, the batch is over.
func (w *Writer) wrote(n int) (whole bool) {
	w.writes++
	w.sizes[min(bits.Len(uint(n)/64), len(w.sizes)-1)]++
	if w.rest = w.rest[n:]; !w.sealed {
		w.sent += uint64(n)
	}
	if len(w.rest) > 0 {
		return false
	}
	w.sent = w.taken
	w.writing, w.rest = false, nil
	w.release(&w.out)
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
		if !w.settle(ctx, n, err) {
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
func (w *Writer) settle(ctx context.Context, n int, err error) (whole bool) {
	if err == nil {
		whole = w.wrote(n)
	}
	if err == nil && !whole && ctx != nil {
		whole, n, err = w.finish(ctx)
	}
	switch {
	case err != nil:
		w.broke(n)
		w.failed(err)
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
	scope, _ := ctx.(*Scope)
	calm := w.calm
	if w.scope = scope; scope == nil {
		calm = w.pokedBy(ctx)
	}
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
			whole = w.wrote(n)
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

// A Scope is a context that its owner ends by End too, so that who writes and waits
// need not ask it to tell: that costs more than most such waits.
type Scope struct{ context.Context }

// End has who writes wait no longer for s, whose Context has ended. Called with the
// lock held.
func (w *Writer) End(s *Scope) {
	if w.scope == s {
		w.poked = true
		w.conn.SetWriteDeadline(time.Unix(1, 0))
	}
}

// calm is what pokedBy returns, for who waits in a Scope.
func (w *Writer) calm() (poked bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if poked = w.poked; poked {
		w.conn.SetWriteDeadline(time.Time{})
	}
	w.scope, w.poked = nil, false
	return poked
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
				w.failed(err)
				break
			}
			w.left = !w.wrote(n)
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
	w.tryBuf, w.tryWait = nil, nil // for the collector
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
	w.tryN, w.tryErr = sockio.Write(fd, w.tryBuf, w.tryTimer)
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
	defer w.mu.Unlock()
	w.failed(err)
}

// failed is Fail for who holds the lock, which is given up for telling only: nobody
// may write behind what was written in part.
func (w *Writer) failed(err error) {
	if w.Stop(err) && w.cfg.Failed != nil {
		w.mu.Unlock()
		w.cfg.Failed(err)
		w.mu.Lock()
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
