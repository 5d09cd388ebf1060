package plugwire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestTenThousandCallsAndAThousandStreams(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		const calls, streams = 10_000, 1000
		unblock := make(chan struct{})
		m := echoMux(unblock)
		m.HandleStream("stream.block", func(s *Stream) error {
			b, err := s.Recv()
			if err != nil {
				return err
			}
			<-unblock
			return s.Send(b)
		})
		x, y := pair(t, transport, nil, serves(m))
		var wg sync.WaitGroup
		for i := range streams {
			wg.Go(func() {
				s := openStream(t, x, "stream.block")
				if err := s.Send(sealed(20+i%50, uint64(i))); err != nil {
					t.Error(err)
				}
				if reply, err := s.Recv(); err != nil {
					t.Error(err)
				} else if seed, err := unseal(reply); err != nil || seed != uint64(i) {
					t.Errorf("what came back on stream %d is of %d, %v", i, seed, err)
				}
				if _, err := s.Recv(); err != io.EOF {
					t.Error(err)
				}
			})
		}
		for i := range calls / 2 {
			wg.Go(func() {
				reply, err := x.Call(background, "block", sealed(20+i%50, uint64(i)))
				if err != nil {
					t.Error(err)
				} else if seed, err := unseal(reply); err != nil || seed != uint64(i) {
					t.Errorf("reply to %d is for %d, %v", i, seed, err)
				}
			})
		}
		all := make([]*Call, calls/2)
		for i := range all {
			all[i] = &Call{Method: "block", Request: sealed(20, uint64(i))}
		}
		wg.Go(func() {
			if err := x.DoAll(background, all); err != nil {
				t.Error(err)
			}
		})
		until(t, "all to be in flight", func() bool { return y.servingCount.Load() == calls+streams })
		parallelChecks(t, x, 100)
		close(unblock)
		wg.Wait()
		accounts(t, x, y)
	})
}

// TestBothEndsFloodEachOther with calls and one-way messages of all sizes while
// neither socket holds much: nobody may stop reading because its own writes wait.
func TestBothEndsFloodEachOther(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		// A TCP buffer below a segment is a matter of timers in the kernel.
		config := func(m *Mux) *Config {
			return &Config{Mux: m, Unix: UnixConfig{BufferSize: 4096}, TCP: TCPConfig{BufferSize: 128 << 10},
				Limits: Limits{OneWayWindow: 100 << 10, MaxCalls: 64, MaxMessage: 1 << 20, MaxRequestBytes: 2 << 20}}
		}
		var handled [2]atomic.Int64
		muxes := make([]*Mux, 2)
		for i := range muxes {
			muxes[i] = echoMux(nil)
			muxes[i].Use(randomTakeOvers(10))
			muxes[i].Handle("note", HandlerFunc(func(r *Request, _ []byte) ([]byte, error) {
				if _, err := unseal(r.Payload()); err != nil {
					t.Error(err)
				}
				handled[i].Add(1)
				return nil, nil
			}))
		}
		x, y := pair(t, transport, config(muxes[0]), config(muxes[1]))
		var wg sync.WaitGroup
		rounds := scaled(40)
		for g := range 24 {
			c := []*Conn{x, y}[g%2]
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(g), 77))
				for i := range rounds {
					size := rng.IntN(2000)
					if i%8 == 0 {
						size = rng.IntN(200 << 10)
					}
					if g%4 < 2 {
						if err := checkCall(background, c, size, uint64(g*1000+i)); err != nil {
							t.Error(err)
							return
						}
					} else if err := c.Notify(background, "note", sealed(size, uint64(i))); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		for i, c := range []*Conn{x, y} {
			if err := c.Flush(background); err != nil {
				t.Error(err)
			}
			if n := handled[1-i].Load(); n != int64(6*rounds) {
				t.Errorf("%d of %d one-way messages handled", n, 6*rounds)
			}
		}
		accounts(t, x, y)
	})
}

// TestRandomMix does everything at once for a while, with random ends of
// contexts; afterwards all accounts are back at nothing and all still works.
func TestRandomMix(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		seed := rand.Uint64()
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("seed %d", seed)
			}
		})
		muxes := make([]*Mux, 2)
		for i := range muxes {
			m := echoMux(nil)
			m.Use(randomTakeOvers(10))
			m.Handle("back", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
				err := checkCall(r.Context(), r.Conn(), len(r.Payload()), 5)
				return append(reply, r.Payload()...), err
			}))
			m.Handle("note", HandlerFunc(func(*Request, []byte) ([]byte, error) { return nil, nil }))
			m.HandleFunc("nap", func(ctx context.Context, _ []byte) ([]byte, error) {
				select {
				case <-ctx.Done():
				case <-time.After(3 * time.Millisecond):
				}
				return nil, ctx.Err()
			})
			m.HandleStream("flow", func(s *Stream) error {
				for {
					b, err := s.Recv()
					if err == nil {
						err = s.Send(b)
					}
					if err == io.EOF {
						return nil
					} else if err != nil {
						return err
					}
				}
			})
			muxes[i] = m
		}
		limits := Limits{StreamWindow: 30 << 10, OneWayWindow: 200 << 10, MaxCalls: 50, MaxMessage: 1 << 20, MaxRequestBytes: 3 << 20}
		x, y := pair(t, transport, &Config{Mux: muxes[0], Limits: limits}, &Config{Mux: muxes[1], Limits: limits})
		until(t, "the tables", func() bool { return x.Methods() != nil && y.Methods() != nil })
		end := time.Now().Add(time.Duration(longRun(300, 3000)) * time.Millisecond)
		var wg sync.WaitGroup
		for g := range 32 {
			c := []*Conn{x, y}[g%2]
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(seed, uint64(g)))
				for time.Now().Before(end) {
					ctx, cancel := context.WithCancel(background)
					if rng.IntN(3) == 0 {
						cancel()
						ctx, cancel = context.WithTimeout(background, time.Duration(rng.IntN(3000))*time.Microsecond)
					}
					size := rng.IntN(1000)
					if rng.IntN(20) == 0 {
						size = rng.IntN(300 << 10)
					}
					var err error
					switch rng.IntN(9) {
					case 0, 1, 2:
						err = checkCall(ctx, c, size, rng.Uint64())
					case 3:
						_, err = c.Call(ctx, "back", sealed(size, 1))
					case 4:
						_, err = c.Call(ctx, "nap", nil)
					case 5:
						err = c.Notify(ctx, "note", fill(size, rng.Uint64()))
					case 6:
						calls := make([]*Call, rng.IntN(80))
						for i := range calls {
							calls[i] = &Call{Method: "check", Request: sealed(rng.IntN(500), uint64(i))}
						}
						err = c.DoAll(ctx, calls)
					case 7:
						if rng.IntN(4) == 0 {
							err = c.Flush(ctx)
						} else {
							_, err = c.Ping(ctx)
						}
					case 8:
						err = flow(ctx, c, rng, size)
					}
					if err != nil && ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
						t.Errorf("with a context that has not ended: %v", err)
						cancel()
						return
					}
					cancel()
				}
			})
		}
		wg.Wait()
		for _, c := range []*Conn{x, y} {
			if err := c.Flush(background); err != nil {
				t.Error(err)
			}
		}
		accounts(t, x, y)
		parallelChecks(t, x, 200)
		parallelChecks(t, y, 200)
		for _, c := range []*Conn{x, y} {
			c.out.Lock()
			n := &c.notes
			if n.outstanding() != 0 || n.large {
				t.Errorf("one-way messages outstanding: %d, large %v", n.outstanding(), n.large)
			}
			c.out.Unlock()
			if n := c.oneWay.gotMsgs; n != c.oneWay.handledMsgs {
				t.Errorf("%d one-way messages came, %d are handled", n, c.oneWay.handledMsgs)
			}
		}
	})
}

// flow uses a stream, and now and then gives it up.
func flow(ctx context.Context, c *Conn, rng *rand.Rand, size int) error {
	s, err := c.OpenStream(ctx, "flow")
	if err != nil {
		return err
	}
	defer s.Close()
	for range rng.IntN(8) {
		msg := sealed(rng.IntN(size+1), rng.Uint64())
		if err := s.Send(msg); err != nil {
			return err
		}
		if rng.IntN(20) == 0 {
			return nil // with a message on its way
		}
		if got, err := s.Recv(); err != nil {
			return err
		} else if !bytes.Equal(got, msg) {
			return errors.New("the stream has changed a message")
		}
	}
	if rng.IntN(4) == 0 {
		s.Reset(Aborted)
		return nil
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	if _, err := s.Recv(); err != io.EOF {
		return fmt.Errorf("at the end: %w", err)
	}
	return nil
}

// TestFloodOfRefusedCallsIsBounded: a peer that reads nothing cannot make this
// side gather endings without end.
func TestFloodOfRefusedCallsIsBounded(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		for _, how := range []string{"unknown method", "aborted", "overdue"} {
			cfg := serves(echoMux(nil))
			cfg.CloseTimeout = 5 * time.Millisecond
			c, peer := scripted(t, transport, cfg)
			var one []byte
			switch how {
			case "unknown method":
				one = appendFrameHeader(nil, FrameHeader{Type: FrameCall, ID: 1, Length: 8})
				one = append(one, "\x07nothing"...)
			case "aborted":
				one = appendFrameHeader(nil, FrameHeader{Type: FrameCall, Flags: FlagBegin | FlagMore, Code: 1, ID: 1, Length: 5})
				one = append(one, 9, 0, 0, 0, 'x')
				one = appendFrameHeader(one, FrameHeader{Type: FrameAbort, ID: 1})
			case "overdue":
				one = appendFrameHeader(nil, FrameHeader{Type: FrameCall, Flags: FlagDeadline, Code: 1, ID: 1, Length: 8})
				one = append(one, make([]byte, 8)...)
			}
			var many []byte
			for range 2000 {
				many = append(many, one...)
			}
			most := 0
			for range scaled(300) { // 600,000 calls, some 30 MB of endings
				peer.nc.SetWriteDeadline(time.Now().Add(20 * time.Second))
				_, err := peer.nc.Write(many)
				c.out.Lock()
				most = max(most, c.out.Len())
				c.out.Unlock()
				if err != nil {
					break
				}
			}
			if most > 1<<20 {
				t.Errorf("%s: %d bytes of endings wait to be sent", how, most)
			}
			peer.nc.Close()
			receive(t, "the end", c.Done())
		}
	})
}

// TestFlushCountsAbortedMessagesInTheirTurn: a message that was aborted behind
// one that is still being handled does not make a Flush return early.
func TestFlushCountsAbortedMessagesInTheirTurn(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		unblock, entered := make(chan struct{}), make(chan struct{})
		m := NewMux()
		m.HandleFunc("note", func(context.Context, []byte) ([]byte, error) {
			close(entered)
			<-unblock
			return nil, nil
		})
		c, peer := scripted(t, transport, serves(m))
		peer.sendFrame(FrameHeader{Type: FrameNotify, Code: 1}, []byte("first"))
		receive(t, "the handler", entered)
		peer.sendFrame(FrameHeader{Type: FrameNotify, Code: 1, Flags: FlagBegin | FlagMore}, []byte{200, 0, 0, 0, 'x'})
		peer.sendFrame(FrameHeader{Type: FrameAbort}, nil)
		peer.sendFrame(FrameHeader{Type: FramePing}, make([]byte, 8))
		peer.expect(FramePong) // so the ABORT has been taken in
		c.out.Lock()
		if n := c.oneWay.handledMsgs; n != 0 {
			t.Errorf("%d messages count as handled while the first is not", n)
		}
		c.out.Unlock()
		close(unblock)
		peer.sendFrame(FrameHeader{Type: FrameCredit}, nil)
		_, b := peer.expect(FrameCredit)
		f := fieldReader{b: b}
		if bytes, msgs := f.u64(), f.u64(); bytes != 205 || msgs != 2 {
			t.Errorf("CREDIT for %d bytes in %d messages", bytes, msgs)
		}
	})
}

// TestEarlyEnding: an ending that comes before its request is whole is the
// call's result, and says by itself whether the call ran.
func TestEarlyEnding(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		for _, how := range []string{"reply", "error", "refusal"} {
			c, peer := scripted(t, transport, &Config{Unix: UnixConfig{BufferSize: 4096}, TCP: TCPConfig{BufferSize: 64 << 10}})
			type result struct {
				reply []byte
				err   error
			}
			done := make(chan result, 1)
			go func() {
				reply, err := c.Call(background, "m", make([]byte, 16<<20))
				done <- result{reply, err}
			}()
			h, _ := peer.expect(FrameCall)
			switch how {
			case "reply":
				peer.sendFrame(FrameHeader{Type: FrameReply, Flags: FlagBack, ID: h.ID}, []byte("enough"))
			case "error":
				peer.sendFrame(FrameHeader{Type: FrameError, Flags: FlagBack, Code: 300, ID: h.ID}, appendErrorPayload(nil, "no", nil))
			case "refusal":
				peer.sendFrame(FrameHeader{Type: FrameError, Flags: FlagBack | FlagNotRun, Code: 300, ID: h.ID}, appendErrorPayload(nil, "no", nil))
			}
			peer.expect(FrameAbort)
			r := receive(t, "the result", done)
			if how == "reply" {
				if string(r.reply) != "enough" || r.err != nil {
					t.Errorf("%q, %v", r.reply, r.err)
				}
			} else {
				wantCode(t, r.err, 300, how == "refusal")
			}
			accounts(t, c)
		}
	})
}

// TestDoAllKeepsNobodyFromASlot: slots of a DoAll whose calls have ended are
// free for others although one of its calls goes on.
func TestDoAllKeepsNobodyFromASlot(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		unblock := make(chan struct{})
		x, y := pair(t, transport, nil, &Config{Mux: echoMux(unblock), Limits: Limits{MaxCalls: 4}})
		until(t, "the table", func() bool { return x.Methods() != nil })
		done := make(chan error, 1)
		calls := []*Call{{Method: "echo"}, {Method: "block"}, {Method: "echo"}, {Method: "echo"}}
		go func() { done <- x.DoAll(background, calls) }()
		until(t, "the blocked call", func() bool { return y.servingCount.Load() == 1 })
		ctx, cancel := context.WithTimeout(background, 10*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				if err := checkCall(ctx, x, 100, uint64(i)); err != nil {
					t.Errorf("beside a DoAll: %v", err)
				}
			})
		}
		wg.Wait()
		close(unblock)
		if err := receive(t, "DoAll", done); err != nil {
			t.Error(err)
		}
		accounts(t, x, y)
	})
}
