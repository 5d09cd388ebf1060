package plugwire

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// What the other side learns from the end of a connection: GOAWAY done says that
// what has no ending did not run, and nothing follows it.

// meetUnread returns an adversary whose window for one-way messages is larger than
// what a socket holds, and who serves "note".
func meetUnread(t *testing.T) *adversary {
	hello := adversaryHello()
	hello.limits.frame, hello.limits.oneWay = maxFrame, 64<<20
	a := meet(t, way{"unix", true}, &Config{}, hello)
	a.send(frame(FrameMethods, 0, 0, 0, methodEntry(4, "note")))
	until(t, "methods", func() bool { return len(a.c.Methods()) > 0 })
	return a
}

// fillUp sends until nothing more goes out.
func fillUp(t *testing.T, c *Conn) {
	for range 64 << 20 / 8000 {
		ctx, cancel := context.WithTimeout(background, 100*time.Millisecond)
		err := c.Notify(ctx, "note", make([]byte, 8000))
		cancel()
		if err != nil {
			return
		}
	}
	t.Fatal("64 MiB went out and nobody reads")
}

// The reply of a call that ran inline is gathered when a one-way message's handler,
// which came in the same read, closes the connection.
func TestDoneIsNotSaidWhenAGatheredReplyIsDropped(t *testing.T) {
	var ran atomic.Int64
	mux := func(a *adversary) *Mux {
		m := NewMux()
		m.HandleFunc("work", func(context.Context, []byte) ([]byte, error) { ran.Add(1); return []byte("ok"), nil })
		m.Handle("close", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) { r.Conn().Close(); return nil, nil }))
		return m
	}
	a := meetServing(t, way{"unix", true}, nil, nil, mux)
	a.send(cat(frame(FrameCall, 0, 1, 1, "x"), frame(FrameNotify, 0, 2, 0, "bye")))
	reply, done := false, false
	for {
		h, _, err := a.in.ReadFrame()
		if err != nil {
			break
		}
		switch {
		case h.Type == FrameReply && h.ID == 1:
			reply = true
		case h.Type == FrameGoAway && h.Code == goAwayDone:
			done = true
		}
		if h.Type == FrameGoAway {
			break
		}
	}
	if ran.Load() == 1 && done && !reply {
		t.Errorf("the call ran, its reply was dropped, and GOAWAY done says that it did not run")
	}
}

// Handlers return when Close ends their contexts, and their endings come too late.
func TestCloseDoesNotSayNotRunOfCallsThatRan(t *testing.T) {
	wrong, tries := 0, scaled(80)
	for range tries {
		began := make(chan struct{}, 8)
		m := NewMux()
		m.HandleFunc("wait", func(ctx context.Context, b []byte) ([]byte, error) {
			began <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		})
		x, y := pair(t, "unix", nil, &Config{Mux: m})
		errs := make(chan error, 4)
		for range 4 {
			go func() { _, err := x.Call(background, "wait", nil); errs <- err }()
		}
		for range 4 {
			<-began
		}
		y.Close()
		for range 4 {
			if err := <-errs; NotRun(err) {
				wrong++
			}
		}
		x.Close()
	}
	if wrong > 0 {
		t.Errorf("%d calls whose handlers had begun ended with NotRun, in %d connections", wrong, tries)
	}
}

func TestCloseDoesNotSayNotRunOfStreamsThatRan(t *testing.T) {
	wrong, tries := 0, scaled(100)
	for range tries {
		began := make(chan struct{}, 8)
		m := NewMux()
		m.HandleStream("wait", func(s *Stream) error {
			began <- struct{}{}
			<-s.Context().Done()
			return nil
		})
		x, y := pair(t, "unix", nil, &Config{Mux: m})
		s, err := x.OpenStream(background, "wait")
		if err != nil {
			t.Fatal(err)
		}
		s.SendHeader()
		<-began
		y.Close()
		if _, err := s.Recv(); NotRun(err) {
			wrong++
		}
		x.Close()
	}
	if wrong > 0 {
		t.Errorf("%d streams whose handlers had begun ended with NotRun, in %d connections", wrong, tries)
	}
}

// What a wrong NotRun would do: a Pool runs a call that is not idempotent again.
func TestPoolRunsNoCallTwiceWhenServersClose(t *testing.T) {
	var mu sync.Mutex
	runs := map[string]int{}
	var conns atomic.Int64
	m := NewMux()
	m.HandleFunc("pay", func(ctx context.Context, b []byte) ([]byte, error) {
		mu.Lock()
		runs[string(b)]++
		mu.Unlock()
		return nil, nil
	})
	m.Handle("leave", HandlerFunc(func(r *Request, b []byte) ([]byte, error) { r.Conn().Close(); return nil, nil }))
	s := &Server{Mux: m, Config: testConfig(&Config{OnConn: func(*Conn) { conns.Add(1) }})}
	l, err := s.Listen(listenAddr(t, "unix"))
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	defer s.Close()
	p := NewPool(testConfig(&Config{Pool: PoolConfig{MaxBackOff: time.Millisecond}}), addrURI(l.Addr()))
	defer p.Close()
	stop := time.Now().Add(time.Duration(longRun(300, 10_000)) * time.Millisecond)
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for i := 0; time.Now().Before(stop) && !t.Failed(); i++ {
				id := fmt.Sprintf("%d/%d", g, i)
				_, err := p.Call(background, "pay", []byte(id))
				mu.Lock()
				n := runs[id]
				mu.Unlock()
				if n > 1 {
					t.Errorf("a call that is not idempotent ran %d times, and ended with error %v", n, err)
				}
			}
		})
	}
	for time.Now().Before(stop) && !t.Failed() {
		time.Sleep(3 * time.Millisecond)
		p.Notify(background, "leave", nil)
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	t.Logf("%d calls, %d connections", len(runs), conns.Load())
}

// A one-way message's handler returns after GOAWAY done has been sent: the CREDIT
// for it stays away.
func TestNothingFollowsDone(t *testing.T) {
	a := meetUnread(t)
	c := a.c
	a.send(cat(frame(FrameNotify, 0, mSlow, 0, "x"), frame(FrameCredit, 0, 0, 0)))
	receive(t, "the handler runs", a.ran)
	fillUp(t, c)
	go c.Close()
	until(t, "closing", func() bool { c.out.Lock(); defer c.out.Unlock(); return c.life.goAway[goAwayDone] })
	for { // until the batch with done is being written
		c.out.Lock()
		taken := !c.life.goAway[goAwayDone]
		c.out.Unlock()
		if taken {
			break
		}
		if _, _, err := a.in.ReadFrame(); err != nil {
			t.Fatal(err)
		}
	}
	a.letGo()
	until(t, "the handler has returned", func() bool { c.out.Lock(); defer c.out.Unlock(); return c.oneWay.handledMsgs == 1 })
	done := false
	for {
		h, b, err := a.in.ReadFrame()
		if err != nil {
			return
		}
		if done {
			t.Errorf("behind GOAWAY done comes %s", describe(h, b))
		}
		done = done || h.Type == FrameGoAway && h.Code == goAwayDone
	}
}

// Shutdown waits for what the other side has accepted too.
func TestShutdownWaitsForTheOtherSidesOneWayMessages(t *testing.T) {
	var good, cut atomic.Int64
	m := NewMux()
	m.HandleFunc("note", func(ctx context.Context, b []byte) ([]byte, error) {
		select {
		case <-time.After(time.Millisecond):
			good.Add(1)
		case <-ctx.Done():
			cut.Add(1)
		}
		return nil, nil
	})
	x, y := pair(t, "unix", nil, &Config{Mux: m})
	for range 50 {
		if err := x.Notify(background, "note", []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.Shutdown(background); err != nil {
		t.Fatal(err)
	}
	<-y.Done()
	until(t, "all handled", func() bool { return good.Load()+cut.Load() == 50 })
	if cut.Load() > 0 {
		t.Errorf("of 50 one-way messages that were accepted before Shutdown, %d were handled with a cancelled context", cut.Load())
	}
}

// Flush is called while a large one-way message waits for room for its first
// frame; that message is then given up, and never sent.
func TestFlushBehindALargeMessageThatIsGivenUp(t *testing.T) {
	a := meetUnread(t)
	c := a.c
	fillUp(t, c)
	ctx, cancel := context.WithCancel(background)
	large := make(chan error, 1)
	go func() { large <- c.Notify(ctx, "note", make([]byte, 1<<20)) }()
	until(t, "large waits", func() bool { c.out.Lock(); defer c.out.Unlock(); return c.notes.large })
	flushed := make(chan error, 1)
	go func() { flushed <- c.Flush(background) }()
	until(t, "flush waits", func() bool { c.out.Lock(); defer c.out.Unlock(); return !c.notes.handled.Empty() })
	cancel()
	wantCode(t, <-large, Canceled, true)
	go func() {
		bytes, msgs := uint64(0), uint64(0)
		for {
			h, _, err := a.in.ReadFrame()
			if err != nil {
				return
			}
			if h.Type == FrameNotify {
				bytes, msgs = bytes+uint64(h.Length), msgs+1
			}
			if h.Type == FrameCredit || h.Type == FrameNotify {
				b := frame(FrameCredit, 0, 0, 0, binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, bytes), msgs))
				a.send(b)
			}
		}
	}()
	until(t, "all handled", func() bool {
		c.out.Lock()
		defer c.out.Unlock()
		return c.notes.handledMsgs == c.notes.sentMsgs
	})
	select {
	case err := <-flushed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("every message that was accepted has been handled, and Flush still waits")
	}
}

// The report that the other side asked for goes before done, also in the same batch.
func TestDoneComesBehindTheReportThatWasAskedFor(t *testing.T) {
	a := meetUnread(t)
	c := a.c
	a.send(cat(frame(FrameNotify, 0, mSlow, 0, "x"), frame(FrameCredit, 0, 0, 0)))
	receive(t, "the handler runs", a.ran)
	fillUp(t, c)
	a.letGo()
	until(t, "the handler has returned", func() bool { c.out.Lock(); defer c.out.Unlock(); return c.oneWay.due })
	go c.Close()
	until(t, "closing", func() bool { c.out.Lock(); defer c.out.Unlock(); return c.life.goAway[goAwayDone] })
	credit := false
	for {
		h, b, err := a.in.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		credit = credit || h.Type == FrameCredit && len(b) == 16
		if h.Type == FrameGoAway && h.Code == goAwayDone {
			break
		}
	}
	if !credit {
		t.Error("GOAWAY done came without the report that had been asked for and was due")
	}
}

// Every message has been handled when the other side shuts down in order: Flush says so.
func TestFlushBesideTheOtherSidesShutdown(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		bad, tries := 0, scaled(40)
		var last error
		for range tries {
			unblock, in := make(chan struct{}), make(chan struct{}, 1)
			m := NewMux()
			m.HandleFunc("note", func(context.Context, []byte) ([]byte, error) { in <- struct{}{}; <-unblock; return nil, nil })
			b, a := pair(t, transport, nil, serves(m))
			if err := b.Notify(background, "note", []byte("x")); err != nil {
				t.Fatal(err)
			}
			<-in
			flushed := make(chan error, 1)
			go func() { flushed <- b.Flush(background) }()
			until(t, "the request for credit", func() bool { a.out.Lock(); defer a.out.Unlock(); return a.oneWay.askedFirst > 0 })
			down := make(chan error, 1)
			go func() { down <- a.Shutdown(background) }()
			until(t, "ack", a.life.acked.Load)
			close(unblock)
			if err := <-flushed; err != nil {
				bad++
				last = err
			}
			<-down
		}
		if bad > 0 {
			t.Errorf("in %d of %d the Flush failed though all was handled before an orderly end: %v", bad, tries, last)
		}
	})
}

// Both sides close at once, with calls each way whose handlers return when their
// contexts end: neither waits for more of the other.
func TestBothCloseAtOnce(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		slow := 0
		for range 5 {
			began := make(chan struct{}, 2)
			mux := func() *Mux {
				m := NewMux()
				m.HandleFunc("wait", func(ctx context.Context, b []byte) ([]byte, error) {
					began <- struct{}{}
					<-ctx.Done()
					return nil, ctx.Err()
				})
				return m
			}
			x, y := pair(t, transport, &Config{Mux: mux(), CloseTimeout: time.Second}, &Config{Mux: mux(), CloseTimeout: time.Second})
			go x.Call(background, "wait", nil)
			go y.Call(background, "wait", nil)
			<-began
			<-began
			start := time.Now()
			closeBoth(x, y)
			if time.Since(start) > 500*time.Millisecond {
				slow++
			}
		}
		if slow > 0 {
			t.Errorf("%d of 5 took the whole CloseTimeout", slow)
		}
	})
}
