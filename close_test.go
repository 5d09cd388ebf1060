package plugwire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestCloseSendsWhatWasAccepted(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		for _, slow := range []bool{false, true} {
			const n = 10_000
			var handled atomic.Int64
			m := echoMux(nil)
			m.Handle("note", HandlerFunc(func(r *Request, _ []byte) ([]byte, error) {
				if slow && handled.Load()%1000 == 3 {
					takeOverNow(r)
				}
				handled.Add(1)
				return nil, nil
			}))
			x, y := pair(t, transport, serves(echoMux(nil)), serves(m))
			for i := range n {
				if err := x.Notify(background, "note", make([]byte, i%200)); err != nil {
					t.Fatal(err)
				}
			}
			if err := x.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			if err := x.Err(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Err after Close: %v", err)
			}
			receive(t, "the other side's end", y.Done())
			if err := y.Err(); !errors.Is(err, io.EOF) {
				t.Errorf("the other side's Err: %v", err)
			}
			until(t, fmt.Sprintf("slow %v: all to be handled", slow), func() bool { return handled.Load() == n })
		}
	})
}

func TestCloseEndsPendingCalls(t *testing.T) {
	t.Parallel()
	overTransports(t, func(t *testing.T, transport string) {
		unblock := make(chan struct{})
		var entered atomic.Int32
		m := echoMux(nil)
		m.HandleFunc("wait", func(ctx context.Context, _ []byte) ([]byte, error) {
			entered.Add(1)
			<-ctx.Done()
			<-unblock
			return nil, nil
		})
		for _, who := range []string{"caller", "server", "both"} {
			entered.Store(0)
			x, y := pair(t, transport, nil, serves(m))
			errs := make(chan error, 20)
			for range 10 {
				go func() { _, err := x.Call(background, "wait", nil); errs <- err }()
			}
			go func() {
				errs <- x.DoAll(background, []*Call{{Method: "wait"}, {Method: "wait"}})
			}()
			until(t, "the handlers", func() bool { return entered.Load() == 12 })
			var wg sync.WaitGroup
			for range 10 { // also at the same time, and again
				if who != "server" {
					wg.Go(func() {
						if err := x.Close(); err != nil {
							t.Error(err)
						}
					})
				}
				if who != "caller" {
					wg.Go(func() {
						if err := y.Close(); err != nil {
							t.Error(err)
						}
					})
				}
			}
			wg.Wait()
			for range 11 {
				wantCode(t, receive(t, "the end of a call", errs), Unavailable, false)
			}
			receive(t, "x's end", x.Done())
			receive(t, "y's end", y.Done())
		}
		close(unblock)
	})
}

func TestCloseFromInsideAHandler(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		for _, oneWay := range []bool{false, true} {
			closed := make(chan error, 1)
			m := NewMux()
			m.Handle("close", HandlerFunc(func(r *Request, _ []byte) ([]byte, error) {
				closed <- r.Conn().Close()
				return nil, nil
			}))
			x, y := pair(t, transport, nil, serves(m))
			if oneWay {
				if err := x.Notify(background, "close", nil); err != nil {
					t.Error(err)
				}
			} else if _, err := x.Call(background, "close", nil); err == nil || NotRun(err) {
				t.Errorf("error %v, NotRun %v", err, NotRun(err))
			}
			if err := receive(t, "Close", closed); err != nil {
				t.Error(err)
			}
			receive(t, "x's end", x.Done())
			receive(t, "y's end", y.Done())
		}
	})
}

func TestPeerIsKilled(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		x, y := pair(t, transport, nil, serves(echoMux(nil)))
		errs := make(chan error, 20)
		for range 10 {
			go func() { _, err := x.Call(background, "block", nil); errs <- err }()
		}
		until(t, "the handlers", func() bool { return y.servingCount.Load() == 10 })
		y.nc.Close()
		start := time.Now()
		for range 10 {
			wantCode(t, receive(t, "the end of a call", errs), Unavailable, false)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("that took %v", d)
		}
		receive(t, "x's end", x.Done())
		receive(t, "y's end", y.Done())
		if err := x.Err(); err == nil || errors.Is(err, net.ErrClosed) && transport != "pipe" {
			t.Errorf("Err: %v", err)
		}
		if err := x.Flush(background); err != nil && x.notes.sentMsgs == 0 {
			t.Errorf("Flush with nothing to wait for: %v", err)
		}
		if _, err := x.Ping(background); err == nil {
			t.Error("Ping of a dead connection")
		}
	})
}

// TestCloseWithAStalledPeer: the other side finishes the handshake and then
// reads nothing.
func TestCloseWithAStalledPeer(t *testing.T) {
	t.Parallel()
	overTransports(t, func(t *testing.T, transport string) {
		cfg := &Config{CloseTimeout: 100 * time.Millisecond, Unix: UnixConfig{BufferSize: 4096}, TCP: TCPConfig{BufferSize: 64 << 10}}
		x, _ := scripted(t, transport, cfg)
		const callers = 6
		errs := make(chan error, callers)
		for range callers {
			go func() { _, err := x.Call(background, "m", make([]byte, 8<<20)); errs <- err }()
		}
		until(t, "the buffer to fill", func() bool {
			x.out.Lock()
			defer x.out.Unlock()
			return x.out.Busy() && !x.out.HasRoom(maxFrame)
		})
		start := time.Now()
		err := x.Close()
		if d := time.Since(start); d > 2*time.Second || d < 50*time.Millisecond {
			t.Errorf("Close took %v", d)
		}
		wantCode(t, err, DeadlineExceeded, false)
		for range callers { // none was sent in whole
			wantCode(t, receive(t, "the end of a call", errs), Unavailable, true)
		}
		receive(t, "the end", x.Done())
	})
}

func TestWriteTimeoutEndsAStalledConnection(t *testing.T) {
	t.Parallel()
	overTransports(t, func(t *testing.T, transport string) {
		cfg := &Config{WriteTimeout: 150 * time.Millisecond, Unix: UnixConfig{BufferSize: 4096}, TCP: TCPConfig{BufferSize: 64 << 10}}
		x, _ := scripted(t, transport, cfg)
		big := make(chan error, 1)
		go func() { _, err := x.Call(background, "m", make([]byte, 32<<20)); big <- err }()
		sent, since := uint64(0), time.Now()
		until(t, "the socket to be full", func() bool {
			x.out.Lock()
			defer x.out.Unlock()
			if x.out.Sent() != sent {
				sent, since = x.out.Sent(), time.Now()
			}
			return x.out.Busy() && time.Since(since) > cfg.WriteTimeout/5
		})
		small := make(chan error, 1)
		go func() { _, err := x.Call(background, "m", make([]byte, 10)); small <- err }()
		wantCode(t, receive(t, "the end of the large call", big), Unavailable, true)
		err := receive(t, "the end of the small call", small)
		wantCode(t, err, Unavailable, NotRun(err)) // the kernel may have taken it after all
		receive(t, "the end", x.Done())            // who waits for room hears of a failed write before that
		if CodeOf(x.Err()) != DeadlineExceeded && !errors.Is(x.Err(), context.DeadlineExceeded) && !isTimeout(x.Err()) {
			t.Errorf("Err: %v", x.Err())
		}
	})
}

// TestCloseWhileRepliesArriveInPieces: however a fragment and the end of the
// connection fall together, the call ends.
func TestCloseWhileRepliesArriveInPieces(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		m := NewMux()
		reply := make([]byte, 4<<20)
		m.Handle("big", HandlerFunc(func(*Request, []byte) ([]byte, error) { return reply, nil }))
		for i := range scaled(10) {
			x, y := pair(t, transport, nil, serves(m))
			errs := make(chan error, 4)
			for range cap(errs) {
				go func() { _, err := x.Call(background, "big", nil); errs <- err }()
			}
			until(t, "part of a reply", func() bool { return x.readBytes.Load() > uint64(i)*1000<<10 })
			x.Close()
			for range cap(errs) {
				receive(t, "the end of a call", errs)
			}
			closeBoth(y)
		}
	})
}

// slowWrites tells the test of each write that has been made, before the writer
// learns of it.
type slowWrites struct {
	net.Conn
	wrote func(b []byte)
}

func (s *slowWrites) Write(b []byte) (int, error) {
	n, err := s.Conn.Write(b)
	s.wrote(b[:n])
	return n, err
}

// TestACallThatIsBeingWrittenMayHaveRun: the other side can have run a call that
// this side's writer is still in the middle of sending.
func TestACallThatIsBeingWrittenMayHaveRun(t *testing.T) {
	plainOnly(t)
	overTransports(t, func(t *testing.T, transport string) {
		var ran atomic.Int32
		m := NewMux()
		m.HandleFunc("run", func(ctx context.Context, _ []byte) ([]byte, error) {
			ran.Add(1)
			<-ctx.Done()
			return nil, nil
		})
		dialled, accepted := netPair(t, transport, nil)
		var hold atomic.Bool
		held, release := make(chan struct{}), make(chan struct{})
		s := &slowWrites{Conn: dialled, wrote: func(b []byte) {
			if FrameType(b[4]) == FrameCall && hold.CompareAndSwap(true, false) {
				close(held)
				<-release
			}
		}}
		x, y := openPair(t, s, accepted, &Config{Authorize: anyone}, serves(m))
		until(t, "the table", func() bool { return x.Methods() != nil })
		if _, err := x.Ping(background); err != nil { // what is written at first is out of the way
			t.Fatal(err)
		}
		hold.Store(true)
		done := make(chan error, 1)
		go func() { _, err := x.Call(background, "run", nil); done <- err }()
		receive(t, "the write", held)
		until(t, "the handler", func() bool { return ran.Load() == 1 })
		y.nc.Close()
		err := receive(t, "the end of the call", done)
		if err == nil || NotRun(err) {
			t.Errorf("the handler has run, and the error is %v with NotRun %v", err, NotRun(err))
		}
		close(release)
	})
}

// TestAWriteThatFailsHalfwayMayHaveDelivered: a connection may take some bytes
// and fail in the same Write.
func TestAWriteThatFailsHalfwayMayHaveDelivered(t *testing.T) {
	t.Parallel()
	plainOnly(t)
	var ran atomic.Int32
	m := NewMux()
	m.HandleFunc("run", func(ctx context.Context, _ []byte) ([]byte, error) {
		ran.Add(1)
		<-ctx.Done()
		return nil, nil
	})
	dialled, accepted := netPair(t, "pipe", nil)
	f := &failingWrites{Conn: dialled}
	x, y := openPair(t, f, accepted, nil, serves(m))
	until(t, "the table", func() bool { return x.Methods() != nil })
	if _, err := x.Ping(background); err != nil {
		t.Fatal(err)
	}
	f.ran = func() bool { return ran.Load() == 1 }
	f.fail.Store(true)
	_, err := x.Call(background, "run", nil)
	if err == nil || NotRun(err) {
		t.Errorf("the handler has run, and the error is %v with NotRun %v", err, NotRun(err))
	}
	receive(t, "the end", x.Done())
	receive(t, "the other end", y.Done())
}

// failingWrites delivers all bytes and then says that it failed.
type failingWrites struct {
	net.Conn
	fail atomic.Bool
	ran  func() bool
}

func (f *failingWrites) Write(b []byte) (int, error) {
	n, err := f.Conn.Write(b)
	if FrameType(b[4]) == FrameCall && f.fail.Load() {
		for !f.ran() {
			time.Sleep(100 * time.Microsecond)
		}
		return n, io.ErrClosedPipe
	}
	return n, err
}
