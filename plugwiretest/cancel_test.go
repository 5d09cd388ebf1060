package plugwiretest_test

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

	"github.com/plugwire/plugwire"
	"github.com/plugwire/plugwire/plugwiretest"
)

// narrow are limits that are soon reached: what a cancelled operation keeps for
// itself is missed by others.
func narrow(c *plugwire.Config) {
	c.Limits = plugwire.Limits{MaxCalls: 4, MaxFrame: 4096, MaxMessage: 16 << 10, MaxRequestBytes: 16 << 10,
		OneWayWindow: 4096, StreamWindow: 4096}
}

// nothingLost checks that nothing is missing on a connection with narrow limits:
// from can have all its calls in flight, a request of all the bytes that requests
// may have together, and one-way messages beyond the window.
func nothingLost(t *testing.T, from *side, requestBytes int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var met sync.WaitGroup
	for range 4 {
		met.Go(func() {
			if _, err := from.conn.Call(ctx, "meet", message(1, 8)); err != nil {
				t.Errorf("with all calls in flight: %v", err)
			}
		})
	}
	met.Wait()
	if _, err := from.conn.Call(ctx, "echo", message(loadIDs.Add(1), requestBytes-100)); err != nil {
		t.Errorf("a large request: %v", err)
	}
	for range 2 {
		if err := from.conn.Notify(ctx, "nothing", make([]byte, 4000)); err != nil {
			t.Errorf("a one-way message: %v", err)
		}
	}
	if err := from.conn.Flush(ctx); err != nil {
		t.Errorf("Flush: %v", err)
	}
	if t.Failed() {
		t.FailNow()
	}
}

// serveMeetings adds to s what nothingLost calls: a method whose calls wait for each
// other, four at a time, and one that does nothing.
func (s *side) serveMeetings() {
	var mu sync.Mutex
	here, all := 0, make(chan struct{})
	s.mux.Handle("meet", plugwire.HandlerFunc(func(r *plugwire.Request, reply []byte) ([]byte, error) {
		mu.Lock()
		wait := all
		if here++; here == 4 {
			close(all)
			here, all = 0, make(chan struct{})
		}
		mu.Unlock()
		select {
		case <-wait:
			return reply, nil
		case <-r.Context().Done():
			return reply, r.Context().Err()
		}
	}))
	s.mux.HandleFunc("nothing", func(context.Context, []byte) ([]byte, error) { return nil, nil })
}

// operations are what a context can be given to, by name. None ends well before
// something of the other side's has arrived.
var operations = map[string]func(ctx context.Context, c *plugwire.Conn) error{
	"Call":       func(ctx context.Context, c *plugwire.Conn) error { return echo(ctx, c, 100) },
	"Call large": func(ctx context.Context, c *plugwire.Conn) error { return echo(ctx, c, 14_000) },
	"DoAll": func(ctx context.Context, c *plugwire.Conn) error {
		var calls []*plugwire.Call
		for range 6 { // two more than may be in flight
			calls = append(calls, &plugwire.Call{Method: "echo", Request: message(loadIDs.Add(1), 100)})
		}
		return c.DoAll(ctx, calls)
	},
	"Notify and Flush": func(ctx context.Context, c *plugwire.Conn) error {
		for range 3 { // the window is full after the first
			if err := c.Notify(ctx, "nothing", make([]byte, 4000)); err != nil {
				return err
			}
		}
		return c.Flush(ctx)
	},
	"Ping": func(ctx context.Context, c *plugwire.Conn) error { _, err := c.Ping(ctx); return err },
	"stream": func(ctx context.Context, c *plugwire.Conn) error {
		s, err := c.OpenStream(ctx, "echo stream")
		if err != nil {
			return err
		}
		defer s.Close()
		if err := s.Send(message(1, 6000)); err != nil { // more than the window
			return err
		}
		if _, err := s.Recv(); err != nil {
			return err
		}
		if err := s.CloseSend(); err != nil {
			return err
		}
		if _, err := s.Recv(); err != io.EOF {
			return err
		}
		return nil
	},
}

func echo(ctx context.Context, c *plugwire.Conn, size int) error {
	_, err := c.Call(ctx, "echo", message(loadIDs.Add(1), size))
	return err
}

// Each operation is cancelled at every byte that is read or written for it, with
// everything behind that byte held back until it has returned. So it is at each
// place where it waits for the connection or the other side.
func TestX7CancelledAtEachByte(t *testing.T) {
	for place, put := range placements {
		for name, op := range operations {
			t.Run(name+"/"+place, func(t *testing.T) {
				watchdog(t)
				near, far, faulty := put(t, faults{})
				x, y := connect(t, near, far, narrow)
				nothingLost(t, x, 16<<10) // and the methods are known
				step, cancelled := 1, 0
				for at := 1; ; at += step {
					if at > 400 { // in the payloads; odd, to be anywhere in the frames
						step = 397
					}
					ctx, cancel := context.WithCancel(context.Background())
					returned := make(chan struct{})
					reached := make(chan struct{})
					faulty.Limit(at, func(*plugwiretest.FaultyConn) {
						defer close(reached)
						cancel()
						select {
						case <-returned:
						case <-time.After(10 * time.Second):
							t.Errorf("cancelled at byte %d, and does not return", at)
						}
					})
					err := op(ctx, x.conn)
					close(returned)
					faulty.Limit(0, nil)
					over := ctx.Err() == nil // it has not come so far
					cancel()
					if err != nil && (over || !errors.Is(err, context.Canceled)) {
						t.Fatalf("cancelled at byte %d: %v", at, err)
					}
					if !over {
						<-reached
					}
					if err != nil {
						cancelled++
						if at%17 == 1 {
							nothingLost(t, x, 16<<10)
						}
					}
					if over {
						break
					}
				}
				if cancelled < 5 {
					t.Errorf("cancelled %d times only", cancelled)
				}
				nothingLost(t, x, 16<<10)
				closing(t, watchLag(t), 0, x, y)
				x.settled(t)
				y.settled(t)
			})
		}
	}
}

// The handshake is cancelled, broken off and stalled at each of its bytes: NewConn
// returns, and so does ServeConn.
func TestX7HandshakeEndedAtEachByte(t *testing.T) {
	watchdog(t)
	for name, end := range map[string]func(c *plugwiretest.FaultyConn, cancel func()){
		"cancel":           func(c *plugwiretest.FaultyConn, cancel func()) { cancel() },
		"reset":            func(c *plugwiretest.FaultyConn, cancel func()) { c.Reset() },
		"stall and cancel": func(c *plugwiretest.FaultyConn, cancel func()) { c.Stall(); cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			for at := 1; ; at++ {
				ctx, cancel := context.WithCancel(context.Background())
				near, far := net.Pipe()
				reached := false
				faulty := plugwiretest.Faulty(near, faults{Limit: at, AtLimit: func(c *plugwiretest.FaultyConn) { reached = true; end(c, cancel) }})
				served := make(chan error, 1)
				server := &plugwire.Server{Mux: greeterMux()}
				go func() { served <- server.ServeConn(ctx, far) }()
				c, err := plugwire.NewConn(ctx, faulty, &plugwire.Config{CloseTimeout: time.Millisecond})
				if err == nil {
					c.Close()
					<-c.Done()
					server.Close()
				} else if !reached || name == "cancel" && !errors.Is(err, context.Canceled) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("ended at byte %d: %v", at, err)
				}
				<-served
				cancel()
				if err == nil {
					break
				}
			}
		})
	}
}

// Nothing passes any more, requests and messages fill all buffers and windows, and
// everybody waits for room, a place or an answer when the contexts end. What was
// begun and cannot be completed is taken back when something passes again.
func TestX7CancelledWhileNothingPasses(t *testing.T) {
	for place, put := range placements {
		t.Run(place, func(t *testing.T) {
			watchdog(t)
			near, far, faulty := put(t, faults{})
			x, y := connect(t, near, far, func(c *plugwire.Config) {
				narrow(c)
				c.Limits.MaxMessage, c.Limits.MaxRequestBytes = 1<<20, 1<<20
			})
			large := func(ctx context.Context, c *plugwire.Conn) error { return echo(ctx, c, 400_000) }
			for range 10 {
				faulty.Stall()
				var all sync.WaitGroup
				start := func(name string, op func(ctx context.Context, c *plugwire.Conn) error) {
					all.Go(func() {
						ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond+rand.N(5*time.Millisecond))
						defer cancel()
						if err := op(ctx, x.conn); !errors.Is(err, context.DeadlineExceeded) {
							t.Errorf("%s: %v", name, err)
						}
					})
				}
				for range 3 { // of which two fit MaxRequestBytes and the pending buffer does not hold one
					start("large call", large)
				}
				for name, op := range operations {
					start(name, op)
				}
				all.Wait()
				faulty.Resume()
				nothingLost(t, x, 1<<20)
			}
			closing(t, watchLag(t), 0, x, y)
			x.settled(t)
			y.settled(t)
		})
	}
}

// Operations of all kinds are cancelled at random, while others that are not must
// all end well.
func TestX7CancellationStorm(t *testing.T) {
	for place, put := range placements {
		t.Run(place, func(t *testing.T) {
			watchdog(t)
			near, far, _ := put(t, faults{})
			x, y := connect(t, near, far, narrow)
			var stop atomic.Bool
			var storm sync.WaitGroup
			for _, from := range []*side{x, y} {
				for name, op := range operations {
					storm.Go(func() {
						for !stop.Load() {
							ctx, cancel := context.WithTimeout(context.Background(), rand.N(500*time.Microsecond))
							err := op(ctx, from.conn)
							cancel()
							if err != nil && !errors.Is(err, context.DeadlineExceeded) {
								t.Errorf("%s: %v", name, err)
								return
							}
						}
					})
				}
			}
			l := load{callers: 2, calls: 50, notes: 50, messages: 20, sizes: []int{10, 100, 2000}, lag: watchLag(t),
				fail: func(err error) { t.Error(err) }}
			var both sync.WaitGroup
			both.Go(func() { l.run(t, x, y) })
			both.Go(func() { l.run(t, y, x) })
			both.Wait()
			stop.Store(true)
			storm.Wait()
			nothingLost(t, x, 16<<10)
			nothingLost(t, y, 16<<10)
			closing(t, l.lag, 0, x, y)
			x.settled(t)
			y.settled(t)
		})
	}
}
