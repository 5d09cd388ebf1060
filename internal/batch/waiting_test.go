package batch

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// appendRecord appends a record without flushing.
func appendRecord(w *Writer, number uint32, size int) {
	w.Lock()
	w.Put(append(w.Buffer(), record(0, number, size)...))
	w.Unlock()
}

// Who flushes and waits needs nobody else: Run is not called.
func TestFlushWaitingWritesTheWholeBatch(t *testing.T) {
	ends(t, func(t *testing.T, a, b net.Conn) {
		w := start(t, a, Config{})
		appendRecord(w, 0, 1<<20)
		read := make(chan struct{})
		go func() { defer close(read); time.Sleep(10 * time.Millisecond); checkRecords(t, b, 1, 1) }()
		w.FlushWaiting(t.Context())
		w.Lock()
		if w.raw != nil && (w.Sent() != w.Position() || w.Busy() || w.kicked) {
			t.Errorf("sent %d of %d, busy %v, kicked %v", w.Sent(), w.Position(), w.Busy(), w.kicked)
		}
		w.Unlock()
		<-read
	})
}

// When the context ends, the one who waited goes and the rest is still written.
func TestFlushWaitingLeavesTheRestWhenItsContextEnds(t *testing.T) {
	for _, scoped := range []bool{false, true} {
		ends(t, func(t *testing.T, a, b net.Conn) {
			w := start(t, a, Config{})
			appendRecord(w, 0, 1<<20)
			ctx, cancel := context.WithCancel(context.Background())
			if scoped {
				ctx, cancel = newScope(w)
			}
			returned := make(chan struct{})
			go func() { defer close(returned); w.FlushWaiting(ctx) }()
			until(t, w, func() bool { return w.Busy() })
			time.Sleep(time.Millisecond) // it may wait by now
			cancel()
			select {
			case <-returned:
			case <-time.After(5 * time.Second):
				t.Fatal("it goes on waiting")
			}
			appendRecord(w, 1, 100)
			w.Flush()
			checkRecords(t, b, 1, 2)
			if err := w.Drain(10 * time.Second); err != nil {
				t.Error(err)
			}
		})
	}
}

// lingering is a connection whose deadlines are slow to come and to go, but for those
// in the future, which gives others time to run into one that is not theirs.
type lingering struct{ *net.UnixConn }

func (c lingering) SetWriteDeadline(t time.Time) error {
	if t.Before(time.Now()) {
		time.Sleep(100 * time.Microsecond)
	}
	return c.UnixConn.SetWriteDeadline(t)
}

// patience returns a context that ends soon, which may be a Scope of w, or one that
// never does.
func patience(w *Writer, rng *rand.Rand) (context.Context, context.CancelFunc) {
	soon := time.Duration(rng.IntN(200)) * time.Microsecond
	switch rng.IntN(3) {
	case 0:
		return context.WithTimeout(context.Background(), soon)
	case 1:
		s, cancel := newScope(w)
		time.AfterFunc(soon, cancel)
		return s, cancel
	}
	return context.Background(), func() {}
}

// newScope returns a Scope of w, and what ends it.
func newScope(w *Writer) (*Scope, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Scope{ctx}
	return s, func() {
		w.Lock()
		cancel()
		w.End(s)
		w.Unlock()
	}
}

// However the end of the context and the connection's readiness fall together,
// nothing is lost and no deadline stays behind.
func TestFlushWaitingWhileContextsEnd(t *testing.T) {
	ends(t, func(t *testing.T, a, b net.Conn) {
		const senders, n = 4, 150
		if c, ok := a.(*net.UnixConn); ok {
			a = lingering{c}
		}
		var failed error
		w := start(t, a, Config{Failed: func(err error) { failed = err }})
		read := make(chan struct{})
		go func() { defer close(read); checkRecords(t, b, senders, n) }()
		var wg sync.WaitGroup
		for s := range uint32(senders) {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(s), 2))
				for i := range uint32(n) {
					rec := record(s, i, rng.IntN(40<<10))
					w.Lock()
					if err := w.WaitRoom(context.Background(), len(rec)); err != nil {
						t.Error(err)
					}
					w.Put(append(w.Buffer(), rec...))
					w.Unlock()
					ctx, cancel := patience(w, rng)
					w.FlushWaiting(ctx)
					cancel()
				}
			})
		}
		wg.Wait()
		if err := w.Drain(10 * time.Second); err != nil || failed != nil {
			t.Errorf("Drain: %v, failed: %v", err, failed)
			a.Close()
		}
		<-read
	})
}

// clearing calls a function when the deadline of a write that has waited is cleared.
type clearing struct {
	*net.UnixConn
	cleared func()
}

func (c clearing) SetWriteDeadline(t time.Time) error {
	err := c.UnixConn.SetWriteDeadline(t)
	if t.IsZero() {
		c.cleared()
	}
	return err
}

// A Scope that ends when a write has just waited in vain for that leaves no deadline
// to the next.
func TestScopeEndsBehindTheWait(t *testing.T) {
	ends(t, func(t *testing.T, a, b net.Conn) {
		u, ok := a.(*net.UnixConn)
		if !ok {
			t.Skip("only Run writes")
		}
		var end func()
		var once sync.Once
		w := start(t, clearing{u, func() { once.Do(end) }}, Config{})
		s, cancel := newScope(w)
		end = cancel
		appendRecord(w, 0, 1<<20)
		read := make(chan struct{})
		go func() { defer close(read); checkRecords(t, b, 1, 1) }()
		w.FlushWaiting(s)
		if s.Err() == nil {
			t.Error("it has not waited")
		}
		if err := w.Drain(10 * time.Second); err != nil {
			t.Error(err)
			a.Close()
		}
		<-read
	})
}

func TestFlushWaitingFailsWithoutProgress(t *testing.T) {
	ends(t, func(t *testing.T, a, b net.Conn) {
		failed := make(chan error, 1)
		w := start(t, a, Config{Timeout: 50 * time.Millisecond, Failed: func(err error) { failed <- err }})
		appendRecord(w, 0, 1<<20)
		w.FlushWaiting(t.Context())
		select {
		case err := <-failed:
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("not given up")
		}
		w.Lock()
		sent := w.Sent()
		w.Unlock()
		a.Close()
		if got, _ := io.Copy(io.Discard, b); uint64(got) != sent {
			t.Errorf("the other end got %d bytes, %d were counted", got, sent)
		}
	})
}
