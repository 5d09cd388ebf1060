package batch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestManyAppendersKeepTheirOrder(t *testing.T) {
	ends(t, func(t *testing.T, a, b net.Conn) {
		const senders, n = 12, 600
		w := start(t, a, Config{})
		read := make(chan struct{})
		go func() {
			defer close(read)
			checkRecords(t, b, senders, n)
		}()
		var wg sync.WaitGroup
		for s := range uint32(senders) {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(s), 1))
				for i := range uint32(n) {
					size := rng.IntN(200)
					if i%50 == 0 {
						size = rng.IntN(64 << 10)
					}
					rec := record(s, i, size)
					w.Lock()
					for !w.HasRoom(len(rec)) {
						if err := w.WaitRoom(context.Background(), len(rec)); err != nil {
							t.Error(err)
						}
					}
					w.Put(append(w.Buffer(), rec...))
					turn := w.Turn(rng.IntN(4) == 0)
					if i%7 == 0 {
						w.Kick()
					}
					w.Unlock()
					w.FlushTurn(turn)
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
	})
}

func TestPartialWrites(t *testing.T) {
	var got bytes.Buffer
	rng := rand.New(rand.NewPCG(5, 6))
	w := start(t, newSink(func(b []byte) (int, error) {
		n := 1 + rng.IntN(len(b)) // fewer than asked, and no error
		got.Write(b[:n])
		return n, nil
	}), Config{})
	for i := range uint32(300) {
		w.Lock()
		w.Put(append(w.Buffer(), record(0, i, int(i))...))
		w.Unlock()
		if i%3 == 0 {
			w.Flush()
		}
	}
	if err := w.Drain(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	checkRecords(t, &got, 1, 300)
}

func TestAWriteOfNothingIsAnError(t *testing.T) {
	failed := make(chan error, 2)
	w := start(t, newSink(func([]byte) (int, error) { return 0, nil }), Config{Failed: func(err error) { failed <- err }})
	w.Lock()
	w.Put(append(w.Buffer(), "x"...))
	w.Unlock()
	if err := w.Drain(10 * time.Second); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("Drain: %v", err)
	}
	if err := <-failed; !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("Failed: %v", err)
	}
}

func TestBytesTakenByAFailingWriteCount(t *testing.T) {
	failed := make(chan error, 1)
	broken := errors.New("broken")
	w := start(t, newSink(func(b []byte) (int, error) { return 3, broken }), Config{Failed: func(err error) { failed <- err }})
	w.Lock()
	w.Put(append(w.Buffer(), "abcdef"...))
	w.Unlock()
	w.Flush()
	if err := <-failed; err != broken {
		t.Error(err)
	}
	w.Lock()
	defer w.Unlock()
	if w.Sent() != 3 || w.Gone() != 3 || w.Err() != broken {
		t.Errorf("sent %d, gone %d, %v", w.Sent(), w.Gone(), w.Err())
	}
}

// TestWriteTimeoutOnlyWithoutProgress: a slow connection that takes a little
// now and then lives; one that takes nothing is given up.
func TestWriteTimeoutOnlyWithoutProgress(t *testing.T) {
	const timeout = 150 * time.Millisecond
	var s *sink
	var writes atomic.Int32
	s = newSink(func(b []byte) (int, error) {
		if writes.Add(1) <= 10 {
			time.Sleep(timeout / 4)
			return 1, nil
		}
		time.Sleep(time.Until(s.expires()))
		return 0, os.ErrDeadlineExceeded
	})
	failed := make(chan error, 1)
	w := start(t, s, Config{Timeout: timeout, Failed: func(err error) { failed <- err }})
	begun := time.Now()
	w.Lock()
	w.Put(append(w.Buffer(), make([]byte, 100)...))
	w.Unlock()
	w.Flush()
	if err := <-failed; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	if d := time.Since(begun); d < 10*timeout/4+timeout || writes.Load() != 11 {
		t.Errorf("given up after %v and %d writes", d, writes.Load())
	}

	// Over a socket, and also with progress within the last attempt.
	ends(t, func(t *testing.T, a, b net.Conn) {
		failed := make(chan error, 1)
		w := start(t, a, Config{Timeout: timeout, Failed: func(err error) { failed <- err }})
		w.Lock()
		w.Put(append(w.Buffer(), make([]byte, 1<<20)...))
		w.Unlock()
		begun := time.Now()
		b.SetReadDeadline(begun.Add(20 * time.Second)) // given up too early, nothing would come
		w.Flush()
		for range 6 { // longer in all than the timeout
			time.Sleep(timeout / 3)
			if _, err := io.ReadFull(b, make([]byte, 16<<10)); err != nil {
				t.Fatal(err)
			}
		}
		last := time.Now()
		select {
		case err := <-failed:
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("not given up")
		}
		if time.Since(begun) < 2*timeout || time.Since(last) < timeout/2 {
			t.Errorf("given up %v after the start, %v after the last progress", time.Since(begun), time.Since(last))
		}
	})
}

// stuck returns a Writer whose connection takes nothing until released, and has
// High bytes pending behind a batch that is being written.
func stuck(t *testing.T) (w *Writer, release func()) {
	gate := make(chan struct{})
	entered := make(chan struct{}, 100)
	w = start(t, newSink(func(b []byte) (int, error) {
		entered <- struct{}{}
		<-gate
		return len(b), nil
	}), Config{})
	var once sync.Once
	release = func() { once.Do(func() { close(gate) }) }
	t.Cleanup(release)
	w.Lock()
	w.Put(append(w.Buffer(), make([]byte, 100)...))
	w.Unlock()
	w.Flush()
	<-entered
	w.Lock()
	w.Put(append(w.Buffer(), make([]byte, High)...))
	w.Unlock()
	return w, release
}

func TestWaitingForRoomIsFairAndHonoursItsContext(t *testing.T) {
	w, release := stuck(t)
	const waiters = 21
	order := make(chan int, waiters)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range waiters {
		wg.Go(func() {
			c := context.Background()
			if i%3 == 1 {
				c = ctx
			}
			w.Lock()
			err := w.WaitRoom(c, 1000)
			if err == nil {
				w.Put(append(w.Buffer(), make([]byte, 1000)...))
				order <- i
			} else if i%3 != 1 || !errors.Is(err, context.Canceled) {
				t.Errorf("waiter %d: %v", i, err)
			}
			w.Unlock()
		})
		until(t, w, func() bool { return len(w.room.queue) == i+1 }) // one after the other
	}
	w.Lock()
	room := w.HasRoom(1)
	w.Unlock()
	if room {
		t.Error("room where there is none")
	}
	cancel()
	until(t, w, func() bool { return len(w.room.queue) == waiters-waiters/3 })
	release()
	wg.Wait()
	close(order)
	last := -1
	for i := range order {
		if i < last {
			t.Errorf("waiter %d came after %d", i, last)
		}
		last = i
	}
	if err := w.Drain(10 * time.Second); err != nil {
		t.Error(err)
	}
}

func TestSmallOnesHaveAReserveWhileOthersWait(t *testing.T) {
	w, release := stuck(t)
	defer release()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Lock()
		defer w.Unlock()
		if err := w.WaitRoom(context.Background(), 1<<10); err == nil {
			w.Put(append(w.Buffer(), make([]byte, 1<<10)...))
		}
	}()
	until(t, w, func() bool { return !w.room.Empty() })
	w.Lock()
	leave(w, High*3/4-100)
	if !w.HasRoom(100) || w.HasRoom(101) {
		t.Error("who does not wait may fill three quarters while others do")
	}
	w.Unlock()
	release()
	<-done
}

// TestWhoHasWaitedHasRoom: who has waited and asks again, as all do, may fill the
// last quarter, also while others wait; else they would only take turns in asking.
func TestWhoHasWaitedHasRoom(t *testing.T) {
	w, release := stuck(t)
	defer release()
	const size = High/4 + 1
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			w.Lock()
			defer w.Unlock()
			for asked := 0; !w.HasRoom(size); asked++ {
				if asked == 1 {
					t.Error("there was room, and then there was none")
				}
				if err := w.WaitRoom(context.Background(), size); err != nil {
					return
				}
			}
			leave(w, High/2)
		})
		until(t, w, func() bool { return len(w.room.queue) == i+1 })
	}
	w.Lock()
	leave(w, High/2)
	w.Open(&w.room)
	w.Unlock()
	wg.Wait()
}

// leave has n bytes pending, as if those before them had left.
func leave(w *Writer, n int) {
	w.taken += uint64(w.Len() - n)
	w.Put(w.Buffer()[:n])
}

// TestTheLastQuarterIsForThoseWhoWaitedBefore: who comes to wait while it is filled
// waits for the next batch. Else each of many senders would wait for each of its
// messages.
func TestTheLastQuarterIsForThoseWhoWaitedBefore(t *testing.T) {
	w, release := stuck(t)
	defer release()
	const size = 1 << 10
	var wg sync.WaitGroup
	var appended atomic.Int32
	wait := func() {
		wg.Go(func() {
			w.Lock()
			defer w.Unlock()
			if err := w.WaitRoom(context.Background(), size); err != nil {
				t.Error(err)
			}
			w.Put(append(w.Buffer(), make([]byte, size)...))
			appended.Add(1)
		})
	}
	wait()
	until(t, w, func() bool { return len(w.room.queue) == 1 })
	w.Lock()
	leave(w, High*3/4)
	w.Unlock()
	wait()
	until(t, w, func() bool { return len(w.room.queue) == 2 })
	w.Lock()
	w.Open(&w.room)
	w.Unlock()
	until(t, w, func() bool { return appended.Load() == 1 }) // by the first
	for range 10 {
		w.Lock()
		w.Open(&w.room)
		w.Unlock()
		time.Sleep(time.Millisecond)
	}
	if n := appended.Load(); n != 1 {
		t.Errorf("%d have appended, one has waited since before", n)
	}
	w.Lock()
	leave(w, High*3/4)
	w.Open(&w.room)
	w.Unlock()
	wg.Wait()
}

func TestFailWakesAll(t *testing.T) {
	for _, how := range []string{"Fail", "Stop"} {
		w, release := stuck(t)
		broken := errors.New("broken")
		errs := make(chan error, 20)
		var other Gate
		for range 5 {
			go func() {
				w.Lock()
				defer w.Unlock()
				errs <- w.WaitRoom(context.Background(), 10)
			}()
			go func() { errs <- w.Drain(10 * time.Second) }()
		}
		until(t, w, func() bool { return len(w.room.queue)+len(w.idle) == 10 })
		if how == "Fail" {
			w.Fail(broken)
		} else {
			w.Lock()
			w.Stop(broken)
			w.Unlock()
		}
		for range 10 {
			if err := <-errs; err != broken {
				t.Errorf("%s: %v", how, err)
			}
		}
		w.Lock()
		if err := w.Wait(context.Background(), &other, func() bool { return false }); err != broken {
			t.Errorf("Wait after %s: %v", how, err)
		}
		w.Unlock()
		if err := w.Drain(time.Second); err != broken {
			t.Errorf("Drain after %s: %v", how, err)
		}
		w.Flush()
		w.Fail(errors.New("another"))
		release()
	}
}

// Who finds no room and an Eager Writer flushes and looks again: that must help.
func TestEagerIsWhatFlushHelps(t *testing.T) {
	ends(t, func(t *testing.T, a, b net.Conn) {
		w := start(t, a, Config{})
		eagerAt := func(size int) bool {
			w.Lock()
			defer w.Unlock()
			w.Put(append(w.Buffer(), make([]byte, size-w.Len())...))
			return w.Eager()
		}
		if eagerAt(eager - 1) {
			t.Error("it is worth waiting for more")
		}
		if got, want := eagerAt(eager), w.raw != nil; got != want {
			t.Errorf("eager: %v, want %v", got, want)
		}
		w.Fail(errors.New("broken"))
		w.Lock()
		if w.Eager() {
			t.Error("a Writer that has ended is worth no flush")
		}
		w.Unlock()
	})
}

func TestDrain(t *testing.T) {
	w, release := stuck(t)
	if err := w.Drain(20 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Drain of a stuck connection: %v", err)
	}
	release()
	for range 3 {
		if err := w.Drain(10 * time.Second); err != nil {
			t.Error(err)
		}
	}
	w.Lock()
	if w.Len() != 0 || w.Busy() {
		t.Error("Drain returned too early")
	}
	w.Unlock()
}

// TestControlIsAskedForEachBatch also when nothing is pending, and behind what is.
func TestControlIsAskedForEachBatch(t *testing.T) {
	ends(t, func(t *testing.T, a, b net.Conn) {
		w := start(t, a, Config{Control: func(dst []byte) []byte { return append(dst, '!') }})
		for _, s := range []string{"", "abc", ""} {
			w.Lock()
			if s != "" {
				w.Put(append(w.Buffer(), s...))
			}
			w.Signal()
			w.Unlock()
			w.FlushControl()
			got := make([]byte, len(s)+1)
			if _, err := io.ReadFull(b, got); err != nil || string(got) != s+"!" {
				t.Errorf("%q, %v", got, err)
			}
		}
		w.FlushControl() // nothing due: nothing written
		if err := w.Drain(time.Second); err != nil {
			t.Error(err)
		}
	})
}

// TestAPromiseIsKept: of many who append at the same time some do nothing,
// because another has promised to write.
func TestAPromiseIsKept(t *testing.T) {
	ends(t, func(t *testing.T, a, b net.Conn) {
		w := start(t, a, Config{})
		for range 500 {
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					w.Lock()
					w.Put(append(w.Buffer(), 'x'))
					turn := w.Turn(false)
					w.Unlock()
					w.FlushTurn(turn)
				})
			}
			b.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.ReadFull(b, make([]byte, 3)); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
		}
	})
}
