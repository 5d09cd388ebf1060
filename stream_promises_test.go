package plugwire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"
)

// What streams promise to those who keep to the rules.

// streamPair serves what handle does as "s" on y; windows are small.
func streamPair(t *testing.T, transport string, window int, handle func(*Stream) error) (x, y *Conn) {
	m := echoMux(nil)
	m.HandleStream("s", handle)
	cfg := serves(m)
	cfg.Limits.StreamWindow = window
	return pair(t, transport, cfg, cfg)
}

// isFull reports whether somebody waits to send.
func isFull(s *Stream) bool {
	if s == nil {
		return false
	}
	s.conn.out.Lock()
	defer s.conn.out.Unlock()
	return !s.gate.Empty()
}

// sendingLong waits until s has begun a message of several frames.
func sendingLong(t *testing.T, s *Stream) {
	until(t, "a message to be under way", func() bool {
		s.conn.out.Lock()
		defer s.conn.out.Unlock()
		return s.sending
	})
}

// A message that is being sent when its stream ends for another reason is
// aborted, in either direction, and the connection goes on.
func TestStreamEndsInsideAMessage(t *testing.T) {
	const long = 32 << 20
	for _, row := range []struct {
		name   string
		handle func(s *Stream, let <-chan struct{}) error
		use    func(t *testing.T, s *Stream, let chan struct{})
	}{
		{"the handler sends and the opener resets", func(s *Stream, _ <-chan struct{}) error {
			if err := s.Send(make([]byte, long)); CodeOf(err) != Aborted {
				return fmt.Errorf("Send: %w", err)
			}
			return nil
		}, func(t *testing.T, s *Stream, _ chan struct{}) {
			s.Header() // begun
			s.Reset(Aborted)
		}},
		{"the handler's goroutine sends and the handler returns", func(s *Stream, let <-chan struct{}) error {
			go s.Send(make([]byte, long))
			<-let
			return nil
		}, func(t *testing.T, s *Stream, let chan struct{}) {
			s.Header()
			close(let)
			if _, err := s.Recv(); err != nil && err != io.EOF { // it may have been sent in whole
				t.Error(err)
			}
		}},
		{"the handler's goroutine sends and the handler resets", func(s *Stream, let <-chan struct{}) error {
			go s.Send(make([]byte, long))
			<-let
			s.Reset(Aborted)
			return nil
		}, func(t *testing.T, s *Stream, let chan struct{}) {
			s.Header()
			close(let)
			if _, err := s.Recv(); err != nil && CodeOf(err) != Aborted {
				t.Error(err)
			}
		}},
		{"the opener sends and the handler returns", func(s *Stream, let <-chan struct{}) error {
			<-let
			return nil
		}, func(t *testing.T, s *Stream, let chan struct{}) {
			sent := make(chan error, 1)
			go func() { sent <- s.Send(make([]byte, long)) }()
			sendingLong(t, s)
			close(let)
			if err := receive(t, "Send", sent); err != nil && err != io.EOF {
				t.Error(err)
			}
		}},
		{"the opener sends and the handler resets", func(s *Stream, let <-chan struct{}) error {
			<-let
			s.Reset(Aborted)
			return nil
		}, func(t *testing.T, s *Stream, let chan struct{}) {
			sent := make(chan error, 1)
			go func() { sent <- s.Send(make([]byte, long)) }()
			sendingLong(t, s)
			close(let)
			if err := receive(t, "Send", sent); err != nil && CodeOf(err) != Aborted {
				t.Error(err)
			}
		}},
		{"the opener sends and resets", func(s *Stream, let <-chan struct{}) error {
			_, err := s.Recv()
			return err
		}, func(t *testing.T, s *Stream, let chan struct{}) {
			sent := make(chan error, 1)
			go func() { sent <- s.Send(make([]byte, long)) }()
			sendingLong(t, s)
			s.Reset(Aborted)
			if err := receive(t, "Send", sent); err != nil && CodeOf(err) != Aborted {
				t.Error(err)
			}
		}},
	} {
		t.Run(strings.ReplaceAll(row.name, " ", "-"), func(t *testing.T) {
			overTransports(t, func(t *testing.T, transport string) {
				let := make(chan struct{})
				failed := make(chan error, 1)
				x, y := streamPair(t, transport, 64<<10, func(s *Stream) error {
					err := row.handle(s, let)
					failed <- err
					return err
				})
				s := openStream(t, x, "s")
				row.use(t, s, let)
				if err := receive(t, "the handler", failed); err != nil && CodeOf(err) != Aborted {
					t.Error(err)
				}
				accounts(t, x, y)
				for i := range 20 { // the slot, for calls
					if err := checkCall(background, x, 100, uint64(i)); err != nil {
						t.Fatal(err)
					}
				}
			})
		})
	}
}

// A stream's slot is held until the handler has returned, and a reset wakes up
// who waits, on both sides and in both directions.
func TestResetWakesEverybody(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		for _, here := range []bool{true, false} {
			let, reset, got := make(chan struct{}), make(chan struct{}), make(chan error, 4)
			x, y := streamPair(t, transport, 8<<10, func(s *Stream) error {
				go func() { _, err := s.Recv(); got <- err }()
				go func() {
					err := error(nil)
					for err == nil {
						err = s.Send(make([]byte, 1000))
					}
					got <- err
				}()
				if !here {
					<-reset
					s.Reset(Aborted)
				}
				<-let
				return nil
			})
			s := openStream(t, x, "s")
			if err := s.SendHeader(); err != nil {
				t.Fatal(err)
			}
			until(t, "the stream", func() bool { return y.servingCount.Load() == 1 })
			until(t, "its window to be full", func() bool { return isFull(y.serving.at(s.id).stream.Load()) })
			if !here { // else what it sends would wake the handler's Recv
				go func() {
					err := error(nil)
					for err == nil {
						err = s.Send(make([]byte, 9<<10))
					}
					got <- err
				}()
			}
			if here {
				s.Reset(Aborted)
			} else {
				close(reset)
			}
			for range map[bool]int{true: 2, false: 3}[here] {
				if err := receive(t, "an end", got); CodeOf(err) != Aborted && err != nil {
					t.Error(err)
				}
			}
			if n := y.servingCount.Load(); n != 1 {
				t.Errorf("%d streams while the handler runs", n)
			}
			x.out.Lock()
			if len(x.free) != 0 {
				t.Error("the slot is free while the handler runs")
			}
			x.out.Unlock()
			close(let)
			accounts(t, x, y)
		}
	})
}

// The largest message is the other side's limit, also once the stream flows.
func TestStreamMessageAboveTheLimitLater(t *testing.T) {
	cfg := serves(streamMux())
	cfg.Limits.MaxMessage = 5000
	x, y := pair(t, "unix", nil, cfg)
	s := openStream(t, x, "stream.sum")
	for range 3 {
		if err := s.Send(make([]byte, 5000)); err != nil {
			t.Fatal(err)
		}
		if err := s.Send(make([]byte, 5001)); CodeOf(err) != ResourceExhausted {
			t.Errorf("a message that is too long: %v", err)
		}
	}
	s.CloseSend()
	if b, err := s.Recv(); string(b) != "3" {
		t.Error(b, err)
	}
	s.Close()
	accounts(t, x, y)
}

// Random traffic both ways at once, of messages up to several windows, some of
// which are given up; then nothing is outstanding but what need not be told.
func TestStreamCreditDoesNotDrift(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		const window = 64<<10 + 13
		sendAll := func(s *Stream, seed uint64) (want []uint64) {
			rng := rand.New(rand.NewPCG(seed, 5))
			for i := range uint64(scaled(200)) {
				size := 12 + rng.IntN(300)
				switch rng.IntN(6) {
				case 0:
					size = 12 + rng.IntN(window)
				case 1:
					size = 12 + rng.IntN(8*window)
				}
				ctx, cancel := context.WithCancel(background)
				if rng.IntN(4) == 0 {
					time.AfterFunc(time.Duration(rng.IntN(300))*time.Microsecond, cancel)
				}
				if err := s.send(ctx, sealed(size, i)); err == nil {
					want = append(want, i)
				} else if !errors.Is(err, context.Canceled) {
					t.Errorf("message %d of %d bytes: %v", i, size, err)
				}
				cancel()
			}
			if err := s.CloseSend(); err != nil {
				t.Error(err)
			}
			return want
		}
		recvAll := func(s *Stream) (got []uint64) {
			for {
				b, err := s.Recv()
				if err == io.EOF {
					return got
				}
				n, bad := unseal(b)
				if err != nil || bad != nil {
					t.Error(err, bad)
					return got
				}
				got = append(got, n)
			}
		}
		balance := func(s *Stream) {
			s.conn.out.Lock()
			defer s.conn.out.Unlock()
			if out := window - s.left; out < 0 || out >= window/4 {
				t.Errorf("a cost of %d is outstanding", out)
			}
		}
		there, checked := make(chan [2][]uint64, 1), make(chan struct{})
		x, y := streamPair(t, transport, window, func(s *Stream) error {
			both := [2][]uint64{}
			var wg sync.WaitGroup
			wg.Go(func() { both[0] = sendAll(s, 1) })
			both[1] = recvAll(s)
			wg.Wait()
			there <- both
			<-checked
			balance(s)
			return nil
		})
		s := openStream(t, x, "s")
		var sent []uint64
		var wg sync.WaitGroup
		wg.Go(func() { sent = sendAll(s, 2) })
		got := recvAll(s)
		wg.Wait()
		both := receive(t, "the handler", there)
		if fmt.Sprint(got) != fmt.Sprint(both[0]) || fmt.Sprint(sent) != fmt.Sprint(both[1]) {
			t.Errorf("sent %d and %d messages, received %d and %d", len(sent), len(both[0]), len(both[1]), len(got))
		}
		for _, c := range []*Conn{x, y} { // CREDIT has come
			if _, err := c.Ping(background); err != nil {
				t.Error(err)
			}
		}
		balance(s)
		close(checked)
		if _, err := s.Recv(); err != io.EOF {
			t.Error(err)
		}
		accounts(t, x, y)
	})
}

// Both sides send messages that fill the window, at once and in turn: whoever
// waits for credit is woken.
func TestStreamWindowFillingPingPong(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		const window, rounds = 16 << 10, 150
		sizes := []int{window - 64, window, window + 1, window/4 - 64, 3 * window, 0}
		talk := func(s *Stream) error {
			var wg sync.WaitGroup
			failed := make(chan error, 2)
			for half := range 2 {
				wg.Go(func() {
					for i := range rounds {
						if err := s.Send(fill(sizes[(i+half)%len(sizes)], uint64(half))); err != nil {
							failed <- err
							return
						}
					}
				})
			}
			for range 2 * rounds {
				if _, err := s.Recv(); err != nil {
					return err
				}
			}
			wg.Wait()
			close(failed)
			return <-failed
		}
		x, y := streamPair(t, transport, window, talk)
		var wg sync.WaitGroup
		for _, c := range []*Conn{x, y} {
			s := openStream(t, c, "s")
			wg.Go(func() {
				if err := talk(s); err != nil {
					t.Error(err)
				}
				if _, err := s.Recv(); err != io.EOF {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		accounts(t, x, y)
	})
}

// Send that waits for credit fails when the stream's direction is closed meanwhile.
func TestCloseSendEndsSendsThatWait(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		x, y := streamPair(t, transport, 4096, func(s *Stream) error { <-s.Context().Done(); return nil })
		s := openStream(t, x, "s")
		if err := s.Send(make([]byte, 4000)); err != nil {
			t.Fatal(err)
		}
		got := make(chan error, 3)
		for range 3 {
			go func() { got <- s.Send(make([]byte, 4000)) }()
		}
		until(t, "them to wait", func() bool { return isFull(s) })
		if err := s.CloseSend(); err != nil {
			t.Error(err)
		}
		for range 3 {
			wantCode(t, receive(t, "Send", got), FailedPrecondition, false)
		}
		s.Close()
		accounts(t, x, y)
	})
}

// A NetConn that is closed with its window full of what was not read does not
// leave the other side's Write waiting.
func TestNetConnClosedWithAFullWindow(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		wrote := make(chan error, 1)
		x, y := streamPair(t, transport, 4096, func(s *Stream) error {
			nc := s.NetConn()
			_, err := nc.Write(make([]byte, 1<<20))
			wrote <- err
			return nil
		})
		s := openStream(t, x, "s")
		nc := s.NetConn()
		if _, err := nc.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		until(t, "the window to be full", func() bool {
			return s.in.got.Load() == 2*(streamChunk+messageCost) && isFull(y.serving.at(s.id).stream.Load())
		})
		if err := nc.Close(); err != nil {
			t.Error(err)
		}
		if err := receive(t, "Write", wrote); err == nil {
			t.Error("it has written into nothing")
		}
		accounts(t, x, y)
	})
}

// What an unread stream holds is bounded by its window, whatever its frames are.
func TestUnreadStreamHoldsItsWindow(t *testing.T) {
	const total = 1 << 20
	tiny := func() []byte {
		b := dataBegin(1, total, "x")
		return append(b, bytes.Repeat(dataPart(FlagMore, 1, "x"), total-2)...)
	}
	meta := metaField("k", strings.Repeat("x", 16000))
	for name, frames := range map[string][]byte{
		"tiny fragments": tiny(),
		"metadata":       bytes.Repeat(frame(FrameData, FlagMeta, 0, 1, meta), 2000),
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			a := meetStreams(t, way{"unix", true}, &Config{}, withMetadata(streamHello()))
			a.nc.SetDeadline(time.Now().Add(20 * time.Second))
			a.send(openFrame(sHold, 1))
			<-a.ran
			before := heap()
			a.send(frames)
			a.alive()
			if held := int(heap()) - int(before); held > 4*total {
				t.Errorf("%d KiB are held", held>>10)
			}
			a.nothingLeft()
		})
	}
}

// Large messages of streams share a budget: who has one that was not received holds
// up only other large ones.
func TestLargeStreamMessagesTakeTurns(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		const size = 600 << 10
		receives := make(chan struct{})
		m := streamMux()
		m.HandleStream("late", func(s *Stream) error {
			<-receives
			for {
				if _, err := s.Recv(); err != nil {
					return nil
				}
			}
		})
		m.HandleStream("sends", func(s *Stream) error { // the same, the other way
			for range 3 {
				if err := s.Send(make([]byte, size)); err != nil {
					return err
				}
			}
			return nil
		})
		cfg := serves(m)
		cfg.Limits.StreamWindow = 64 << 10
		cfg.Limits.MaxMessage, cfg.Limits.MaxRequestBytes = 1<<20, 1<<20
		x, y := pair(t, transport, cfg, cfg)

		first, second := openStream(t, x, "late"), openStream(t, x, "late")
		if err := first.Send(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithCancel(background)
		gone, err := x.OpenStream(short, "late")
		if err != nil {
			t.Fatal(err)
		}
		sent := make(chan error, 2)
		go func() { sent <- gone.Send(make([]byte, size)) }()
		waiting := func() bool { x.out.Lock(); defer x.out.Unlock(); return !x.large.gate.Empty() }
		until(t, "who waits", waiting)
		cancel()
		if err := receive(t, "a cancelled Send", sent); CodeOf(err) != Canceled {
			t.Error(err)
		}
		go func() { sent <- second.Send(make([]byte, size)) }()
		until(t, "who waits", waiting)

		// What is not large goes on: messages, calls, and the other direction.
		for range 3 {
			echo := openStream(t, x, "stream.echo")
			if err := echo.Send(make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			if b, err := echo.Recv(); len(b) != 1000 || err != nil {
				t.Fatal(len(b), err)
			}
			echo.Close()
			if _, err := x.Call(background, "echo", make([]byte, size)); err != nil {
				t.Fatal(err)
			}
		}
		there := openStream(t, x, "sends")
		for range 3 {
			if b, err := there.Recv(); len(b) != size || err != nil {
				t.Fatal(len(b), err)
			}
		}
		select {
		case err := <-sent:
			t.Fatalf("a message beyond the budget was sent: %v", err)
		default:
		}
		close(receives)
		if err := receive(t, "the second Send", sent); err != nil {
			t.Error(err)
		}
		for _, s := range []*Stream{first, second, there} {
			s.CloseSend()
			if _, err := s.Recv(); err != io.EOF {
				t.Error(err)
			}
		}
		accounts(t, x, y)
	})
}
