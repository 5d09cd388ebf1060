package batch

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plugwire/plugwire/internal/sockio"
)

// Messages that are written from where they are keep their place among those that
// are gathered, whatever the connection takes of them at once, and belong to their
// sender again when the call returns.
func TestQueueDirectKeepsTheOrder(t *testing.T) {
	ends(t, func(t *testing.T, a, b net.Conn) {
		const senders, n = 3, 200
		w := start(t, a, Config{})
		read := make(chan struct{})
		go func() { defer close(read); checkRecords(t, b, senders, n) }()
		var direct atomic.Int32
		var wg sync.WaitGroup
		for s := range uint32(senders) {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(s), 7))
				for i := range uint32(n) {
					rec := record(s, i, rng.IntN(40<<10))
					ctx, cancel := patience(w, rng)
					w.Lock()
					if err := w.WaitRoom(context.Background(), len(rec)); err != nil {
						t.Error(err)
					}
					if w.Idle() {
						direct.Add(1)
						head := w.Head(1 + rng.IntN(len(rec)-1))
						body := rec[copy(head, rec):]
						w.QueueDirect(ctx, head, body)
						clear(body)
					} else {
						w.Put(append(w.Buffer(), rec...))
						w.Queue(ctx)
					}
					cancel()
					if rng.IntN(3) == 0 { // so that the next may find nothing pending
						w.Drain(10 * time.Second)
					}
				}
			})
		}
		wg.Wait()
		if err := w.Drain(10 * time.Second); err != nil {
			t.Errorf("Drain: %v", err)
		}
		<-read
		w.Lock()
		defer w.Unlock()
		if w.Sent() != w.Position() || w.Gone() != w.Sent() || w.Len() != 0 || w.Busy() {
			t.Errorf("sent %d, gone %d, position %d, pending %d, busy %v", w.Sent(), w.Gone(), w.Position(), w.Len(), w.Busy())
		}
		if got := direct.Load(); (got > 0) != (w.raw != nil && sockio.TwoAvailable) {
			t.Errorf("%d were written directly", got)
		}
	})
}

// What is counted as sent is what has gone when the connection breaks.
func TestQueueDirectFails(t *testing.T) {
	ends(t, func(t *testing.T, a, b net.Conn) {
		failed := make(chan error, 1)
		w := start(t, a, Config{Timeout: 50 * time.Millisecond, Failed: func(err error) { failed <- err }})
		w.Lock()
		if !w.Idle() {
			w.Unlock()
			t.Skip("not with this connection")
		}
		head := w.Head(10)
		copy(head, "0123456789")
		w.QueueDirect(t.Context(), head, make([]byte, 1<<20))
		select {
		case <-failed:
		case <-time.After(10 * time.Second):
			t.Fatal("not given up")
		}
		w.Lock()
		sent := w.Sent()
		idle := w.Idle()
		w.Unlock()
		a.Close()
		if got, _ := io.Copy(io.Discard, b); uint64(got) != sent || idle {
			t.Errorf("the other end got %d bytes, %d were counted; idle %v", got, sent, idle)
		}
		if err := w.Drain(time.Second); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("Drain: %v", err)
		}
	})
}
