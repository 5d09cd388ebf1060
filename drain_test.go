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

// counted counts what handlers ran and what callers learned of it.
type counted struct {
	ran, good, notRun, mayHave atomic.Int64
	notesSent, notesRun        atomic.Int64
}

func (k *counted) mux() *Mux {
	m := NewMux()
	m.Handle("work", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		switch n := k.ran.Add(1); {
		case n%50 == 0:
			takeOverNow(r)
		case n%501 == 0:
			time.Sleep(2 * time.Millisecond)
		}
		return append(reply, r.Payload()...), nil
	}))
	m.Handle("note", HandlerFunc(func(r *Request, _ []byte) ([]byte, error) {
		if k.notesRun.Add(1)%100 == 0 {
			takeOverNow(r)
		}
		return nil, nil
	}))
	return m
}

// callUntilRefused makes calls and sends one-way messages until the connection
// takes no more.
func (k *counted) callUntilRefused(t *testing.T, c *Conn, seed int) {
	for i := seed; ; i++ {
		size := 10
		if i%40 == 0 {
			size = 150 << 10
		}
		_, err := c.Call(background, "work", make([]byte, size))
		switch {
		case err == nil:
			k.good.Add(1)
		case NotRun(err):
			k.notRun.Add(1)
			return
		default:
			k.mayHave.Add(1)
			t.Errorf("a call was lost: %v", err)
			return
		}
		if i%7 == 0 {
			if c.Notify(background, "note", make([]byte, size)) != nil {
				return
			}
			k.notesSent.Add(1)
		}
	}
}

func TestShutdownLosesNothing(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		for _, who := range []string{"caller", "server", "both"} {
			t.Run(who, func(t *testing.T) {
				for range 4 {
					testShutdown(t, transport, who)
				}
			})
		}
	})
}

func testShutdown(t *testing.T, transport, who string) {
	var fromX, fromY counted // named after the callers
	x, y := pair(t, transport, serves(fromY.mux()), serves(fromX.mux()))
	var wg, down sync.WaitGroup
	for i := range 32 {
		wg.Go(func() { fromX.callUntilRefused(t, x, i) })
		wg.Go(func() { fromY.callUntilRefused(t, y, i) })
	}
	until(t, "traffic", func() bool { return fromX.good.Load() > 100 && fromY.good.Load() > 100 })
	ctx, cancel := context.WithTimeout(background, 15*time.Second)
	defer cancel()
	for side, c := range map[string]*Conn{"caller": x, "server": y} {
		if who == side || who == "both" {
			down.Go(func() {
				if err := c.Shutdown(ctx); err != nil {
					t.Errorf("Shutdown of the %s: %v", side, err)
				}
			})
		}
	}
	down.Wait()
	receive(t, "x's end", x.Done())
	receive(t, "y's end", y.Done())
	wg.Wait()
	for name, k := range map[string]*counted{"x": &fromX, "y": &fromY} {
		if k.ran.Load() != k.good.Load()+k.mayHave.Load() {
			t.Errorf("%s: %d handlers ran, for %d good replies and %d errors that may have run (%d not run)",
				name, k.ran.Load(), k.good.Load(), k.mayHave.Load(), k.notRun.Load())
		}
		until(t, fmt.Sprintf("%s's %d one-way messages to be handled", name, k.notesSent.Load()),
			func() bool { return k.notesRun.Load() == k.notesSent.Load() })
	}
	for _, c := range []*Conn{x, y} {
		if err := c.Err(); !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.EOF) {
			t.Errorf("Err after an orderly end: %v", err)
		}
	}
}

// TestShutdownWaitsForHandlersWhichMayCallBack: the drainer's handlers finish
// what they do, with calls to the other side.
func TestShutdownWaitsForHandlersWhichMayCallBack(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		unblock := make(chan struct{})
		entered := make(chan struct{}, 1)
		m := NewMux()
		m.Handle("slow", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			entered <- struct{}{}
			<-unblock
			got, err := r.Conn().Call(r.Context(), "echo", []byte("called back"))
			return append(reply, got...), err
		}))
		x, y := pair(t, transport, serves(echoMux(nil)), serves(m))
		type result struct {
			reply []byte
			err   error
		}
		done := make(chan result, 1)
		go func() {
			reply, err := x.Call(background, "slow", nil)
			done <- result{reply, err}
		}()
		receive(t, "the handler", entered)
		down := make(chan error, 1)
		go func() { down <- y.Shutdown(background) }()
		until(t, "the drain", func() bool {
			x.out.Lock()
			defer x.out.Unlock()
			return x.life.theyDrain
		})
		_, err := x.Call(background, "slow", nil)
		wantCode(t, err, Unavailable, true)
		wantCode(t, x.Notify(background, "slow", nil), Unavailable, true)
		select {
		case <-down:
			t.Error("Shutdown did not wait")
		default:
		}
		close(unblock)
		if r := receive(t, "the reply", done); string(r.reply) != "called back" || r.err != nil {
			t.Errorf("%q, %v", r.reply, r.err)
		}
		if err := receive(t, "Shutdown", down); err != nil {
			t.Error(err)
		}
	})
}

func TestContextEndsShutdown(t *testing.T) {
	t.Parallel()
	overTransports(t, func(t *testing.T, transport string) {
		unblock := make(chan struct{})
		defer close(unblock)
		entered := make(chan struct{}, 1)
		m := NewMux()
		m.HandleFunc("stuck", func(context.Context, []byte) ([]byte, error) {
			entered <- struct{}{}
			<-unblock
			return nil, nil
		})
		x, y := pair(t, transport, nil, serves(m))
		done := make(chan error, 1)
		go func() { _, err := x.Call(background, "stuck", nil); done <- err }()
		receive(t, "the handler", entered)
		ctx, cancel := context.WithTimeout(background, 50*time.Millisecond)
		defer cancel()
		if err := y.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: %v", err)
		}
		wantCode(t, receive(t, "the call's end", done), Unavailable, false)
		receive(t, "y's end", y.Done())
		if err := y.Shutdown(background); err != nil {
			t.Errorf("Shutdown again: %v", err)
		}
	})
}

// TestRepliesGatheredBeforeAckAreSent: the calls that are read together with
// GOAWAY ack have their replies sent before the drainer says that it is done.
func TestRepliesGatheredBeforeAckAreSent(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		for range 30 {
			c, peer := scripted(t, transport, serves(echoMux(nil)))
			down := make(chan error, 1)
			go func() { down <- c.Shutdown(background) }()
			peer.expect(FrameGoAway)
			const calls = 20
			var b []byte
			for id := range uint32(calls) {
				b = appendFrameHeader(b, FrameHeader{Type: FrameCall, Code: 1, ID: id + 1, Length: 5})
				b = append(b, "hello"...)
			}
			b = appendFrameHeader(b, FrameHeader{Type: FrameGoAway, Code: goAwayAck})
			for range 2500 { // while these are taken in, Shutdown goes on
				b = append(appendFrameHeader(b, FrameHeader{Type: FramePong, Length: 8}), 1, 2, 3, 4, 5, 6, 7, 8)
			}
			peer.send(b)
			for n := 0; n < calls; {
				h, _, err := peer.fr.ReadFrame()
				if err != nil || h.Type == FrameGoAway {
					t.Fatalf("%v (%v) after %d of %d replies", h.Type, err, n, calls)
				}
				if h.Type == FrameReply {
					n++
				}
			}
			peer.expect(FrameGoAway)
			peer.nc.Close()
			receive(t, "Shutdown", down)
		}
	})
}

// TestLargeOneWayMessageBesideADrain: no message begins after GOAWAY ack, which
// would break the protocol and lose the calls in flight.
func TestLargeOneWayMessageBesideADrain(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		for range 10 {
			m := echoMux(nil)
			m.HandleFunc("note", func(context.Context, []byte) ([]byte, error) { return nil, nil })
			x, y := pair(t, transport, &Config{Unix: UnixConfig{BufferSize: 4096}}, serves(m))
			var wg sync.WaitGroup
			var sent atomic.Int32
			for range 4 {
				wg.Go(func() {
					for {
						if err := x.Notify(background, "note", make([]byte, 200<<10)); err != nil {
							if !NotRun(err) || CodeOf(err) != Unavailable {
								t.Error(err)
							}
							return
						}
						sent.Add(1)
					}
				})
			}
			until(t, "traffic", func() bool { return sent.Load() > 10 })
			if err := y.Shutdown(background); err != nil {
				t.Error(err)
			}
			receive(t, "x's end", x.Done())
			wg.Wait()
			if err := x.Err(); !errors.Is(err, io.EOF) {
				t.Fatalf("x ended with: %v", err)
			}
			if err := y.Err(); !errors.Is(err, net.ErrClosed) {
				t.Fatalf("y ended with: %v", err)
			}
		}
	})
}
