package plugwire

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// inOrder is a handler of one-way messages whose first 8 bytes count up for each
// sender, whose number is in the next 4.
type inOrder struct {
	t       *testing.T
	next    [16]uint64
	running atomic.Int32
	handled atomic.Int64
	bytes   atomic.Int64
	slow    func(r *Request, i uint64)
}

func numbered(n int, sender uint32, i uint64) []byte {
	b := make([]byte, max(n, 16))
	binary.LittleEndian.PutUint64(b, i)
	binary.LittleEndian.PutUint32(b[8:], sender)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(b)))
	for k := 16; k < len(b); k += 1 + len(b)/64 {
		b[k] = byte(i) + byte(k)
	}
	return b
}

func (o *inOrder) ServeCall(r *Request, reply []byte) ([]byte, error) {
	if o.running.Add(1) != 1 {
		o.t.Error("two one-way messages are handled at the same time")
	}
	defer o.running.Add(-1)
	b := r.Payload()
	i, sender := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[8:])
	if !r.OneWay() {
		o.t.Error("not a one-way message")
	}
	if want := o.next[sender]; i != want {
		o.t.Errorf("sender %d: message %d came as number %d", sender, i, want)
	}
	o.next[sender]++
	if o.slow != nil {
		o.slow(r, i)
	}
	if n := binary.LittleEndian.Uint32(b[12:]); int(n) != len(b) {
		o.t.Errorf("message %d of %d bytes has %d", i, n, len(b))
	}
	for k := 16; k < len(b); k += 1 + len(b)/64 {
		if b[k] != byte(i)+byte(k) {
			o.t.Errorf("message %d of %d bytes is wrong at %d", i, len(b), k)
			break
		}
	}
	o.bytes.Add(int64(len(b)))
	o.handled.Add(1)
	return reply, nil
}

func TestNotifyKeepsOrder(t *testing.T) {
	slow := map[string]func(r *Request, i uint64){
		"quick": nil,
		"takeover": func(r *Request, i uint64) {
			if i%64 == 7 {
				takeOverNow(r)
			}
		},
		"blocks": func(r *Request, i uint64) {
			if i%10000 == 7 {
				time.Sleep(3 * time.Millisecond) // the monitor sees to it
			}
		},
		"callsback": func(r *Request, i uint64) {
			if i%500 == 7 {
				if _, err := r.Conn().Call(r.Context(), "echo", r.Payload()); err != nil {
					panic(err)
				}
			}
		},
	}
	overTransports(t, func(t *testing.T, transport string) {
		for name, f := range slow {
			t.Run(name, func(t *testing.T) {
				n := longRun(20_000, 100_000)
				if raceEnabled || transport == "pipe" {
					n = 10_000
				}
				o := &inOrder{t: t, slow: f}
				m := NewMux()
				m.Handle("note", o)
				x, y := pair(t, transport, serves(echoMux(nil)), serves(m))
				for i := range uint64(n) {
					if err := x.Notify(background, "note", numbered(int(i%100), 0, i)); err != nil {
						t.Fatal(err)
					}
				}
				if err := x.Flush(background); err != nil || o.handled.Load() != int64(n) {
					t.Errorf("%d of %d handled after Flush, %v", o.handled.Load(), n, err)
				}
				accounts(t, x, y)
			})
		}
	})
}

func TestNotifyFromManySendersWithLargeOnes(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		for _, window := range []int{minWindow, 256 << 10, 4 << 20} {
			o := &inOrder{t: t, slow: func(r *Request, i uint64) {
				if i%37 == 0 {
					takeOverNow(r)
				}
			}}
			m := echoMux(nil)
			m.Handle("note", o)
			x, y := pair(t, transport, nil, &Config{Mux: m, Limits: Limits{OneWayWindow: window}})
			var wg sync.WaitGroup
			var total atomic.Int64
			each := scaled(150)
			for s := range 8 {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(s), 5))
					for i := range uint64(each) {
						size := rng.IntN(500)
						if i%16 == 3 {
							size = rng.IntN(window * 5 / 4) // also larger than the window
						}
						if i%32 == 5 {
							size = maxFrame - 5 + rng.IntN(10)
						}
						b := numbered(size, uint32(s), i)
						total.Add(int64(len(b)))
						if err := x.Notify(background, "note", b); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			parallelChecks(t, x, 100)
			wg.Wait()
			if err := x.Flush(background); err != nil || o.handled.Load() != int64(8*each) || o.bytes.Load() != total.Load() {
				t.Errorf("%d messages of %d bytes handled, want %d of %d; %v", o.handled.Load(), o.bytes.Load(), 8*each, total.Load(), err)
			}
			accounts(t, x, y)
		}
	})
}

// TestSendersWhoseMessagesFillTheWindow: each message goes alone, so that its
// sender depends on being told of every one before it.
func TestSendersWhoseMessagesFillTheWindow(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		const window = 1 << 20
		o := &inOrder{t: t}
		m := NewMux()
		m.Handle("note", o)
		x, _ := pair(t, transport, nil, &Config{Mux: m, Limits: Limits{OneWayWindow: window}})
		var wg sync.WaitGroup
		for s, size := range []int{window, window / 5, window, 0, 100 << 10} {
			wg.Go(func() {
				for i := range uint64(30) {
					ctx, cancel := context.WithTimeout(background, 20*time.Second)
					err := x.Notify(ctx, "note", numbered(size, uint32(s), i))
					cancel()
					if err != nil {
						t.Errorf("sender of %d bytes: %v", size, err)
						return
					}
				}
			})
		}
		wg.Wait()
		if err := x.Flush(background); err != nil || o.handled.Load() != 150 {
			t.Errorf("%d handled, %v", o.handled.Load(), err)
		}
	})
}

// TestNobodyPassesThoseWhoWaitForTheWindow unless there is enough for them too.
func TestNobodyPassesThoseWhoWaitForTheWindow(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		const window = 64 << 10
		unblock := make(chan struct{})
		m := NewMux()
		m.HandleFunc("block", func(context.Context, []byte) ([]byte, error) { <-unblock; return nil, nil })
		x, y := pair(t, transport, nil, &Config{Mux: m, Limits: Limits{OneWayWindow: window}})
		var wg sync.WaitGroup
		defer wg.Wait()
		defer close(unblock)
		notify := func(size int) {
			if err := x.Notify(background, "block", make([]byte, size-messageCost)); err != nil {
				t.Error(err)
			}
		}
		waits := func(size, n int) { // as the n-th
			t.Helper()
			wg.Go(func() { notify(size) })
			until(t, "it waits", func() bool { return waitingForWindow(x) == n })
		}
		notify(window - 1000)
		waits(2000, 1)
		waits(500, 2) // there is room for it
		// As if the other side had said that all was handled and nobody had been woken yet.
		x.out.Lock()
		n := &x.notes
		bytes, msgs := n.handledBytes, n.handledMsgs
		n.handledBytes, n.handledMsgs = n.sentBytes, n.sentMsgs
		n.allow(x)
		if n.left != window-2500 {
			t.Errorf("%d may be sent, want %d", n.left, window-2500)
		}
		x.out.Unlock()
		notify(1000)
		if waitingForWindow(x) != 2 {
			t.Error("somebody has been woken")
		}
		x.out.Lock()
		n.handledBytes, n.handledMsgs = bytes, msgs
		n.allow(x)
		x.out.Unlock()
		waits(500, 3)
		unblock <- struct{}{} // the first message
		until(t, "all are sent", func() bool { return waitingForWindow(x) == 0 })
		x.out.Lock()
		if n.waiting != 0 {
			t.Errorf("%d wait, and nobody waits", n.waiting)
		}
		x.out.Unlock()
		for range 4 {
			unblock <- struct{}{}
		}
		if err := x.Flush(background); err != nil {
			t.Error(err)
		}
		accounts(t, x, y)
	})
}

// TestManySendersSeldomWait: each credit and each batch is for many messages, not for
// one of each sender.
func TestManySendersSeldomWait(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		const senders, each = 64, 1000
		m := NewMux()
		m.HandleFunc("note", func(context.Context, []byte) ([]byte, error) { return nil, nil })
		x, y := pair(t, transport, nil, &Config{Mux: m, Limits: Limits{OneWayWindow: 1 << 20}})
		var wg sync.WaitGroup
		for range senders {
			wg.Go(func() {
				for range each {
					if err := x.Notify(background, "note", make([]byte, 64)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		if err := x.Flush(background); err != nil {
			t.Error(err)
		}
		s := x.Stats().Stalls
		if s.OneWay+s.Writes > senders*each/10 {
			t.Errorf("of %d messages %d waited for the window and %d for room", senders*each, s.OneWay, s.Writes)
		}
		accounts(t, x, y)
	})
}

// waitingForWindow returns how many wait at x's one-way window.
func waitingForWindow(x *Conn) int {
	x.out.Lock()
	defer x.out.Unlock()
	return x.notes.window.Len()
}

// TestLargeMessagePassesNobody: whatever credit there is, it would make those who wait
// wait until it is sent.
func TestLargeMessagePassesNobody(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		m := NewMux()
		m.HandleFunc("note", func(context.Context, []byte) ([]byte, error) { return nil, nil })
		x, _ := pair(t, transport, nil, &Config{Mux: m})
		n := &x.notes
		largeIsSent := func(now bool) { // of another sender, who has woken nobody yet
			x.out.Lock()
			n.large = now
			n.allow(x)
			x.out.Unlock()
		}
		largeIsSent(true)
		small := make(chan error, 1)
		go func() { small <- x.Notify(background, "note", make([]byte, 10)) }()
		until(t, "the small message to wait", func() bool { return waitingForWindow(x) == 1 })
		largeIsSent(false)
		large := make(chan error, 1)
		go func() { large <- x.Notify(background, "note", make([]byte, 200<<10)) }()
		until(t, "the large message to wait", func() bool {
			if len(large) > 0 {
				t.Fatal("it has passed the small one")
			}
			return waitingForWindow(x) == 2
		})
		x.out.Lock()
		x.out.Open(&n.window)
		x.out.Unlock()
		receive(t, "the small message", small)
		receive(t, "the large message", large)
	})
}

// TestWaiterBehindAWaiter: the second of two who wait for the window needs all
// of it, and the first one's message is far below a quarter of it.
func TestWaiterBehindAWaiter(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		const window = 64 << 10
		unblock := make(chan struct{})
		m := NewMux()
		m.HandleFunc("block", func(context.Context, []byte) ([]byte, error) { <-unblock; return nil, nil })
		x, y := pair(t, transport, nil, &Config{Mux: m, Limits: Limits{OneWayWindow: window}})
		if err := x.Notify(background, "block", make([]byte, window-messageCost)); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 2)
		go func() { done <- x.Notify(background, "block", make([]byte, 100)) }()
		until(t, "the first to wait", func() bool { return waitingForWindow(x) == 1 })
		go func() { done <- x.Notify(background, "block", make([]byte, window)) }()
		until(t, "the second to wait", func() bool { return waitingForWindow(x) == 2 })
		close(unblock)
		for range 2 {
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("a sender waits for the window though everything was handled")
			}
		}
		if err := x.Flush(background); err != nil {
			t.Error(err)
		}
		accounts(t, x, y)
	})
}

func TestSlowReceiverSlowsTheSenderAlone(t *testing.T) {
	t.Parallel()
	overTransports(t, func(t *testing.T, transport string) {
		const window = 128 << 10
		unblock := make(chan struct{})
		var handled atomic.Int64
		m := echoMux(nil)
		m.Handle("note", HandlerFunc(func(*Request, []byte) ([]byte, error) {
			<-unblock
			handled.Add(1)
			return nil, nil
		}))
		x, y := pair(t, transport, nil, &Config{Mux: m, Limits: Limits{OneWayWindow: window}})
		until(t, "the table", func() bool { return x.Methods() != nil })
		const sent = window / (1000 + messageCost)
		ctx, cancel := context.WithTimeout(background, adversaryPatience)
		for n := range sent {
			if err := x.Notify(ctx, "note", make([]byte, 1000)); err != nil {
				t.Fatalf("%d messages were sent, the window is for %d: %v", n, sent, err)
			}
		}
		cancel()
		ctx, cancel = context.WithTimeout(background, 50*time.Millisecond)
		wantCode(t, x.Notify(ctx, "note", make([]byte, 1000)), DeadlineExceeded, true)
		cancel()
		y.oneWay.mu.Lock()
		queued := y.oneWay.waiting()
		y.oneWay.mu.Unlock()
		if queued > sent {
			t.Errorf("%d messages queued", queued)
		}
		parallelChecks(t, x, 500) // a full window stops no calls
		parallelChecks(t, x, 10)
		ctx, cancel = context.WithTimeout(background, 20*time.Millisecond)
		if err := x.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Flush: %v", err)
		}
		cancel()
		// Waiting senders: one gives up, the others go on.
		gone, cancel := context.WithCancel(background)
		var wg sync.WaitGroup
		wg.Go(func() { wantCode(t, x.Notify(gone, "note", make([]byte, 1000)), Canceled, true) })
		for range 5 {
			wg.Go(func() {
				if err := x.Notify(background, "note", make([]byte, 1000)); err != nil {
					t.Error(err)
				}
			})
		}
		until(t, "senders to wait", func() bool { return waitingForWindow(x) > 0 })
		cancel()
		close(unblock)
		wg.Wait()
		if err := x.Flush(background); err != nil || handled.Load() != int64(sent+5) {
			t.Errorf("%d of %d handled after Flush, %v", handled.Load(), sent+5, err)
		}
		accounts(t, x, y)
	})
}

func TestFlushIsABarrier(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		var handled atomic.Int64
		m := NewMux()
		m.Handle("note", HandlerFunc(func(r *Request, _ []byte) ([]byte, error) {
			switch n := handled.Load(); {
			case n%7 == 0:
				takeOverNow(r)
			case n%50 == 1:
				handled.Add(1)
				runtime.Goexit()
			}
			runtime.Gosched()
			handled.Add(1)
			return nil, nil
		}))
		x, y := pair(t, transport, nil, serves(m))
		if err := x.Flush(background); err != nil {
			t.Errorf("with nothing sent: %v", err)
		}
		var sent int64
		for i := range 300 {
			for range i % 5 {
				if err := x.Notify(background, "note", make([]byte, i*i)); err != nil {
					t.Fatal(err)
				}
				sent++
			}
			if err := x.Flush(background); err != nil || handled.Load() != sent {
				t.Fatalf("round %d: %d of %d handled, %v", i, handled.Load(), sent, err)
			}
		}
		accounts(t, x, y)
	})
}

// TestFlushDoesNotWaitForLaterMessages: the credit for what was handled on a
// goroutine that was taken over is sent before the next handler runs there.
func TestFlushDoesNotWaitForLaterMessages(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		for _, end := range []string{"returns", "exits"} {
			first, second := make(chan struct{}), make(chan struct{})
			entered := make(chan string, 2)
			m := NewMux()
			m.HandleFunc("first", func(context.Context, []byte) ([]byte, error) {
				entered <- "first"
				<-first
				if end == "exits" {
					runtime.Goexit()
				}
				return nil, nil
			})
			m.HandleFunc("second", func(context.Context, []byte) ([]byte, error) {
				entered <- "second"
				<-second
				return nil, nil
			})
			x, y := pair(t, transport, nil, serves(m))
			if err := x.Notify(background, "first", nil); err != nil {
				t.Fatal(err)
			}
			receive(t, "the first handler", entered)
			flushed := make(chan error, 1)
			go func() { flushed <- x.Flush(background) }()
			until(t, "the request for credit", func() bool {
				y.out.Lock()
				defer y.out.Unlock()
				return y.oneWay.askedFirst > 0
			})
			if err := x.Notify(background, "second", nil); err != nil {
				t.Fatal(err)
			}
			until(t, "the second message", func() bool {
				y.oneWay.mu.Lock()
				defer y.oneWay.mu.Unlock()
				return y.oneWay.waiting() == 1
			})
			close(first)
			receive(t, "the second handler", entered)
			select {
			case err := <-flushed:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(3 * time.Second):
				t.Errorf("first %s: Flush waits for a message that was sent after it", end)
			}
			close(second)
			if err := x.Flush(background); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestNotifyToAMethodThatIsNotThere(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		m := echoMux(nil)
		x, y := pair(t, transport, nil, serves(m))
		// By name it may be sent, and is dropped and counted; later it fails here.
		sent := 0
		for range 5 {
			if x.Notify(background, "nothing", make([]byte, 100<<10)) == nil {
				sent++
			}
		}
		until(t, "the table", func() bool { return x.Methods() != nil })
		wantCode(t, x.Notify(background, "nothing", nil), Unimplemented, true)
		if err := x.Flush(background); err != nil {
			t.Error(err)
		}
		y.out.Lock()
		handled := y.oneWay.handledMsgs
		y.out.Unlock()
		if handled != uint64(sent) {
			t.Errorf("%d of %d counted", handled, sent)
		}
		wantCode(t, x.Notify(background, "echo", make([]byte, defaultMaxMessage+1)), ResourceExhausted, true)
		got := make(chan string, 1)
		m.Fallback(HandlerFunc(func(r *Request, _ []byte) ([]byte, error) {
			got <- r.Method() + ":" + string(r.Payload())
			return nil, errors.New("dropped")
		}))
		until(t, "the fallback", func() bool { return x.theirs.Load().fallback })
		if err := x.Notify(background, "other", []byte("body")); err != nil {
			t.Error(err)
		}
		if s := receive(t, "the fallback's run", got); s != "other:body" {
			t.Errorf("%q", s)
		}
		accounts(t, x, y)
	})
}

// T18: messages that wait hold none of the large buffers that calls have had made
// before.
func TestT18QueuedMessagesHoldNoLargeBuffers(t *testing.T) {
	const rounds, calls = 10, 8
	hello := adversaryHello()
	release := make(chan struct{})
	began := make(chan struct{}, 1000)
	mux := func(a *adversary) *Mux {
		m := NewMux()
		m.Handle("block", HandlerFunc(func(r *Request, b []byte) ([]byte, error) { a.note(a.ran, "block"); <-a.release; return nil, nil }))
		m.HandleFunc("slow", func(ctx context.Context, b []byte) ([]byte, error) {
			began <- struct{}{}
			<-release
			return nil, nil
		})
		return m
	}
	a := meetServing(t, way{"unix", true}, &Config{Limits: Limits{OneWayWindow: 512 << 10}}, hello, mux)
	a.send(frame(FrameNotify, 0, 1, 0, "x"))
	receive(t, "block", a.ran)
	before := heap()
	payload := make([]byte, 60<<10)
	notes := 0
	for range rounds {
		for id := range uint32(calls) {
			a.send(frame(FrameCall, 0, 2, id+1, payload))
		}
		for range calls {
			receive(t, "slow", began)
		}
		for range calls {
			release <- struct{}{}
		}
		for range calls {
			a.next(FrameReply)
		}
		var b []byte
		for range calls {
			b = append(b, frame(FrameNotify, 0, 1, 0, "x")...)
			b = append(b, cat(frame(FrameNotify, bm, 1, 0, uint32(2), "y"), abortFrame(0))...) // so that they lie apart
			notes += 2
		}
		a.send(b)
		until(t, "the queue", func() bool {
			a.c.oneWay.mu.Lock()
			defer a.c.oneWay.mu.Unlock()
			return a.c.oneWay.waiting() == notes
		})
	}
	if after := heap(); after > before+1<<20 {
		t.Errorf("%d small messages hold %d KiB", notes, (after-before)>>10)
	}
}

// waiting counts the messages in the queue. Called under mu.
func (n *inNotes) waiting() (count int) {
	for _, q := range n.queue {
		if q.single != nil {
			count++
			continue
		}
		for b := q.packed[q.at:]; len(b) > 0; count++ {
			b = b[packedHeader+int(b[5])+int(binary.LittleEndian.Uint32(b)):]
		}
	}
	return count
}

// T18: however many messages wait for a stuck handler, they take little more than
// their bytes, also when each is for another method or by a name.
func TestT18QueuedMessagesTakeLittle(t *testing.T) {
	unblock := make(chan struct{})
	block := HandlerFunc(func(*Request, []byte) ([]byte, error) { <-unblock; return nil, nil })
	m := NewMux()
	m.Handle("a", block)
	m.Handle("b", block)
	m.Fallback(block)
	const messages = 4 << 20 / messageCost
	for name, methods := range map[string][]string{"one method": {"a"}, "two in turn": {"a", "b"}, "by name": {"c", "d"}} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			x, y := pair(t, "pipe", nil, serves(m))
			until(t, "the table", func() bool { return x.Methods() != nil })
			before := heap()
			for i := range messages {
				if err := x.Notify(background, methods[i%len(methods)], nil); err != nil {
					t.Fatal(err)
				}
			}
			until(t, "all to have come", func() bool {
				y.oneWay.mu.Lock()
				defer y.oneWay.mu.Unlock()
				return y.oneWay.waiting() >= messages-longStretch // of the first, the rest waits in the read buffer
			})
			if after := heap(); after > before+1<<20 {
				t.Errorf("%d messages without payload take %d KiB", messages, (after-before)>>10)
			}
			go func() {
				for range messages {
					unblock <- struct{}{}
				}
			}()
			if err := x.Flush(background); err != nil {
				t.Error(err)
			}
		})
	}
}
