package plugwire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// streamMux serves streams: "echo" returns every message, "sum" answers the end of
// input by the number of messages, "wait" returns when its context ends.
func streamMux() *Mux {
	m := echoMux(nil)
	m.HandleStream("stream.echo", func(s *Stream) error {
		for {
			b, err := s.Recv()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if err := s.Send(b); err != nil {
				return err
			}
		}
	})
	m.HandleStream("stream.sum", func(s *Stream) error {
		n, b := 0, []byte(nil)
		for {
			var err error
			if b, err = s.AppendRecv(b[:0]); err == io.EOF {
				return s.Send(fmt.Append(nil, n))
			} else if err != nil {
				return err
			}
			n++
		}
	})
	m.HandleStream("stream.wait", func(s *Stream) error {
		s.SendHeader()
		<-s.Context().Done()
		return s.Context().Err()
	})
	m.HandleStream("stream.fail", func(s *Stream) error {
		for i := range 3 {
			s.Send([]byte{byte(i)})
		}
		return &Error{Code: 300, Message: "as asked", Detail: []byte("detail")}
	})
	m.HandleStream("stream.panic", func(*Stream) error { panic("stream") })
	m.HandleStream("stream.exit", func(*Stream) error { runtime.Goexit(); return nil })
	m.HandleStream("stream.meta", func(s *Stream) error {
		if err := s.SetHeader(Metadata{"header": s.Info().Metadata["k"]}); err != nil {
			return err
		}
		if err := s.SetTrailer(Metadata{"trailer": s.Info().Method}); err != nil {
			return err
		}
		if b, err := s.Recv(); err == nil {
			return s.Send(b)
		}
		return errors.New("nothing came")
	})
	return m
}

func openStream(t testing.TB, c *Conn, method string) *Stream {
	t.Helper()
	s, err := c.OpenStream(background, method)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStreamEchoes(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		x, y := pair(t, transport, serves(streamMux()), serves(streamMux()))
		var wg sync.WaitGroup
		for i, c := range []*Conn{x, y, x, y} {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(i), 3))
				s := openStream(t, c, "stream.echo")
				const n = 200
				var sent [][]byte
				for i := range n {
					size := rng.IntN(300)
					if i%20 == 0 {
						size = rng.IntN(3 << 20)
					}
					sent = append(sent, fill(size, rng.Uint64()))
				}
				go func() {
					for _, b := range sent {
						if err := s.Send(b); err != nil {
							t.Error(err)
						}
					}
					if err := s.CloseSend(); err != nil {
						t.Error(err)
					}
				}()
				for i, want := range sent {
					got, err := s.Recv()
					if err != nil || !bytes.Equal(got, want) {
						t.Errorf("message %d: %d bytes, %v, want %d", i, len(got), err, len(want))
						return
					}
				}
				for range 2 {
					if _, err := s.Recv(); err != io.EOF {
						t.Errorf("at the end: %v", err)
					}
				}
				if err := s.Send(nil); err != io.EOF && CodeOf(err) != FailedPrecondition {
					t.Errorf("Send after the end: %v", err)
				}
			})
		}
		wg.Wait()
		accounts(t, x, y)
	})
}

func TestStreamEndings(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		x, y := pair(t, transport, nil, serves(streamMux()))
		t.Run("error behind messages", func(t *testing.T) {
			s := openStream(t, x, "stream.fail")
			for i := range 3 {
				if b, err := s.Recv(); err != nil || len(b) != 1 || b[0] != byte(i) {
					t.Fatal(b, err)
				}
			}
			_, err := s.Recv()
			var e *Error
			if !errors.As(err, &e) || e.Code != 300 || e.Message != "as asked" || string(e.Detail) != "detail" || e.Op != "stream" || NotRun(err) {
				t.Errorf("%#v", err)
			}
			if err := s.Send(nil); CodeOf(err) != 300 {
				t.Errorf("Send: %v", err)
			}
		})
		for method, want := range map[string]struct {
			code   Code
			notRun bool
		}{
			"stream.panic": {Internal, false},
			"stream.exit":  {Internal, false},
			"echo":         {Unimplemented, true},
		} {
			s := openStream(t, x, method)
			_, err := s.Recv()
			wantCode(t, err, want.code, want.notRun)
		}
		if _, err := x.OpenStream(background, "no such"); CodeOf(err) != Unimplemented || !NotRun(err) {
			t.Errorf("no such method: %v", err)
		}
		_, err := x.Call(background, "stream.echo", nil)
		wantCode(t, err, Unimplemented, true)
		if err := x.Notify(background, "stream.echo", nil); err != nil {
			t.Error(err)
		}
		if err := x.Flush(background); err != nil {
			t.Error(err)
		}
		t.Run("reset", func(t *testing.T) {
			s := openStream(t, x, "stream.wait")
			if _, err := s.Header(); err != nil {
				t.Fatal(err)
			}
			s.Reset(Aborted)
			_, err := s.Recv()
			wantCode(t, err, Aborted, false)
			wantCode(t, s.Send(nil), Aborted, false)
		})
		t.Run("context", func(t *testing.T) {
			ctx, cancel := context.WithCancel(background)
			s, err := x.OpenStream(ctx, "stream.wait")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Header(); err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(time.Millisecond, cancel)
			if _, err := s.Recv(); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		t.Run("deadline", func(t *testing.T) {
			ctx, cancel := context.WithTimeout(background, 20*time.Millisecond)
			defer cancel()
			s, err := x.OpenStream(ctx, "stream.wait")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Recv(); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
		t.Run("never begun", func(t *testing.T) {
			s := openStream(t, x, "stream.wait")
			s.Close()
			_, err := s.Recv()
			wantCode(t, err, Canceled, true)
		})
		until(t, "the slots to be free", func() bool { return y.servingCount.Load() == 0 })
		accounts(t, x, y)
	})
}

func TestStreamMetadata(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		x, y := pair(t, transport, nil, serves(streamMux()))
		s := openStream(t, x, "stream.meta")
		if err := s.SetHeader(Metadata{"Bad": ""}); CodeOf(err) != InvalidArgument {
			t.Error(err)
		}
		if err := s.SetHeader(Metadata{"k": "v"}); err != nil {
			t.Fatal(err)
		}
		if err := s.Send([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if md, err := s.Header(); err != nil || md["header"] != "v" {
			t.Errorf("%v, %v", md, err)
		}
		if b, err := s.Recv(); string(b) != "x" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		if _, err := s.Recv(); err != io.EOF || s.Trailer()["trailer"] != "stream.meta" {
			t.Errorf("%v, %v", err, s.Trailer())
		}
		s = openStream(t, x, "stream.meta") // header and trailer without a message
		s.CloseSend()
		if md, err := s.Header(); err != nil || md == nil {
			t.Errorf("%v, %v", md, err)
		}
		if _, err := s.Recv(); CodeOf(err) != Unknown || s.Trailer() == nil {
			t.Errorf("%v, %v", err, s.Trailer())
		}
		s = openStream(t, x, "stream.wait") // which does not end meanwhile
		if err := s.Send([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := s.SetHeader(nil); CodeOf(err) != FailedPrecondition {
			t.Errorf("SetHeader after Send: %v", err)
		}
		s.Close()
		accounts(t, x, y)
	})
}

// An unread stream stops its own sender, and nobody else.
func TestUnreadStreamHarmsNoOther(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		const window = 64 << 10
		cfg := serves(streamMux())
		cfg.Limits.StreamWindow = window
		x, y := pair(t, transport, nil, cfg)
		s := openStream(t, x, "stream.wait")
		sent, stopped := make(chan int, 1), make(chan error, 1)
		go func() {
			for n := 0; ; n++ {
				if err := s.Send(make([]byte, 1000)); err != nil {
					sent <- n
					stopped <- err
					return
				}
			}
		}()
		until(t, "the window to be full", func() bool {
			x.out.Lock()
			defer x.out.Unlock()
			return !s.gate.Empty()
		})
		parallelChecks(t, x, 1000)
		checkSum(t, x)
		s.Reset(Canceled)
		if n := receive(t, "the sender", sent); n != window/(1000+messageCost) {
			t.Errorf("%d messages into a window of %d", n, window)
		}
		wantCode(t, <-stopped, Canceled, false)
		until(t, "the slots to be free", func() bool { return y.servingCount.Load() == 0 })
		accounts(t, x, y)
	})
}

// checkSum sends a stream of 500 messages of 1,000 bytes and takes the answer and
// the end.
func checkSum(t *testing.T, c *Conn) {
	t.Helper()
	s := openStream(t, c, "stream.sum")
	for range 500 {
		if err := s.Send(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	s.CloseSend()
	if b, err := s.Recv(); string(b) != "500" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := s.Recv(); err != io.EOF {
		t.Error(err)
	}
}

func TestAThousandStreams(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		x, y := pair(t, transport, serves(streamMux()), serves(streamMux()))
		var wg sync.WaitGroup
		for i := range scaled(1000) {
			c := []*Conn{x, y}[i%2]
			wg.Go(func() {
				s := openStream(t, c, "stream.echo")
				for j := range 5 {
					want := fill(i%200+j, uint64(i))
					if err := s.Send(want); err != nil {
						t.Error(err)
					}
					if b, err := s.Recv(); err != nil || !bytes.Equal(b, want) {
						t.Error(len(b), err)
					}
				}
				switch i % 3 {
				case 0:
					s.CloseSend()
					if _, err := s.Recv(); err != io.EOF {
						t.Error(err)
					}
				case 1:
					s.Close()
				default:
					s.Reset(Aborted)
				}
			})
			if i%3 == 0 {
				wg.Go(func() {
					if err := checkCall(background, c, 100, uint64(i)); err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
		for _, c := range []*Conn{x, y} {
			until(t, "the slots to be free", func() bool { return c.servingCount.Load() == 0 })
		}
		accounts(t, x, y)
	})
}

func TestConnectionEndsStreams(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		x, y := pair(t, transport, nil, serves(streamMux()))
		begun := openStream(t, x, "stream.wait")
		if _, err := begun.Header(); err != nil {
			t.Fatal(err)
		}
		waiting := openStream(t, x, "stream.echo")
		never := openStream(t, x, "stream.echo")
		errs := make(chan error, 2)
		for _, s := range []*Stream{begun, waiting} {
			go func() { _, err := s.Recv(); errs <- err }()
		}
		until(t, "both", func() bool { return y.servingCount.Load() == 2 })
		go x.Close()
		for range 2 {
			err := receive(t, "an end", errs)
			wantCode(t, err, Unavailable, false)
			if errors.Is(err, io.EOF) {
				t.Errorf("looks like the end of the messages: %v", err)
			}
		}
		_, err := never.Recv()
		wantCode(t, err, Unavailable, true)
		receive(t, "the end", y.Done())
		until(t, "the handlers", func() bool { return y.servingCount.Load() == 0 })
		if _, err := x.OpenStream(background, "stream.echo"); CodeOf(err) != Unavailable {
			t.Error(err)
		}
	})
}

// Who closes in order cuts its streams off all the same.
func TestClosingSideCutsStreamsOff(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		x, y := pair(t, transport, nil, serves(streamMux()))
		s := openStream(t, x, "stream.wait")
		if _, err := s.Header(); err != nil {
			t.Fatal(err)
		}
		go y.Close()
		_, err := s.Recv()
		if CodeOf(err) != Unavailable || errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
}

// Shutdown waits for streams, which go on meanwhile.
func TestShutdownWaitsForStreams(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		x, y := pair(t, transport, nil, serves(streamMux()))
		s := openStream(t, x, "stream.sum")
		if err := s.Send(nil); err != nil {
			t.Fatal(err)
		}
		down := make(chan error, 1)
		until(t, "the stream", func() bool { return y.servingCount.Load() == 1 })
		go func() { down <- y.Shutdown(background) }()
		until(t, "the drain", func() bool { x.out.Lock(); defer x.out.Unlock(); return x.life.theyDrain })
		for range 10 {
			if err := s.Send(nil); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := x.OpenStream(background, "stream.sum"); CodeOf(err) != Unavailable || !NotRun(err) {
			t.Errorf("OpenStream during the drain: %v", err)
		}
		s.CloseSend()
		if b, err := s.Recv(); string(b) != "11" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		if _, err := s.Recv(); err != io.EOF {
			t.Error(err)
		}
		if err := receive(t, "Shutdown", down); err != nil {
			t.Error(err)
		}
	})
}

// Several goroutines may send.
func TestStreamsAreShared(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		cfg := serves(streamMux())
		cfg.Limits.StreamWindow = 16 << 10
		x, y := pair(t, transport, cfg, cfg)
		s := openStream(t, x, "stream.echo")
		const senders, n = 5, 60
		var wg sync.WaitGroup
		for i := range senders {
			wg.Go(func() {
				for j := range n {
					if err := s.Send(sealed(24+(j%10)*7000, uint64(i*n+j))); err != nil {
						t.Error(err)
					}
				}
			})
		}
		go func() {
			wg.Wait()
			s.CloseSend()
		}()
		seen := make(map[uint64]bool)
		for {
			b, err := s.Recv()
			if err == io.EOF {
				break
			}
			seed, err2 := unseal(b)
			if err != nil || err2 != nil {
				t.Fatal(err, err2)
			}
			seen[seed] = true
		}
		if len(seen) != senders*n {
			t.Errorf("%d messages of %d", len(seen), senders*n)
		}
		accounts(t, x, y)
	})
}

func TestASecondReceiverPanics(t *testing.T) {
	x, _ := pair(t, "unix", nil, serves(streamMux()))
	s := openStream(t, x, "stream.echo")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Recv()
	}()
	until(t, "Recv", func() bool { s.in.mu.Lock(); defer s.in.mu.Unlock(); return s.in.waiting })
	func() {
		defer func() {
			if p := fmt.Sprint(recover()); !strings.Contains(p, "two goroutines") {
				t.Error(p)
			}
		}()
		s.Recv()
	}()
	s.Close()
	receive(t, "the end", ended)
}

func TestStreamMessageThatIsTooLong(t *testing.T) {
	cfg := serves(streamMux())
	cfg.Limits.MaxMessage = 10000
	x, _ := pair(t, "unix", nil, cfg)
	s := openStream(t, x, "stream.sum")
	err := s.Send(make([]byte, 10001))
	if CodeOf(err) != ResourceExhausted || !strings.Contains(err.Error(), "10000") {
		t.Error(err)
	}
	if err := s.Send(make([]byte, 10000)); err != nil {
		t.Error(err)
	}
	s.CloseSend()
	if b, err := s.Recv(); string(b) != "1" {
		t.Error(b, err)
	}
}

func TestHeaderOfAStreamThatFailedIsKept(t *testing.T) {
	m := NewMux()
	m.HandleStream("fails", func(s *Stream) error {
		s.SetHeader(Metadata{"k": "v"})
		return &Error{Code: NotFound, Message: "no"}
	})
	x, _ := pair(t, "unix", nil, serves(m))
	s := openStream(t, x, "fails")
	if _, err := s.Recv(); CodeOf(err) != NotFound {
		t.Fatal(err)
	}
	if md, err := s.Header(); err != nil || md["k"] != "v" {
		t.Errorf("Header behind the end: %v, %v", md, err)
	}
}

// A message of several frames is put together where it is wanted: memory of its own
// for each would keep the collector busy.
func TestAppendRecvPutsPartsTogetherInPlace(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		const large, n, before = 300 << 10, 20, "before it"
		messages := make([][]byte, n)
		for i := range messages {
			messages[i] = fill(large+i, uint64(i))
		}
		m := NewMux()
		m.HandleStream("s", func(s *Stream) error {
			buf := append(make([]byte, 0, large+100), before...)
			var first, last runtime.MemStats
			for i, want := range messages {
				if i == n/2 {
					runtime.ReadMemStats(&first)
				}
				got, err := s.AppendRecv(buf)
				if err != nil {
					return err
				}
				if string(got[:len(before)]) != before || !bytes.Equal(got[len(before):], want) {
					return fmt.Errorf("message %d: %d bytes, which are others", i, len(got))
				}
				if got, err = s.AppendRecv(got[:0]); err != nil || len(got) != 1 || got[0] != byte(i) {
					return fmt.Errorf("behind message %d: %v, %w", i, got, err)
				}
				copy(buf, before)
			}
			runtime.ReadMemStats(&last)
			if got := (last.TotalAlloc - first.TotalAlloc) / (n / 2); got > 3*large/2 && !raceEnabled { // whose pools forget
				return fmt.Errorf("%d bytes allocated for a message of %d", got, large)
			}
			return nil
		})
		x, _ := pair(t, transport, nil, serves(m))
		s := openStream(t, x, "s")
		defer s.Close()
		for i, msg := range messages {
			if s.Send(msg) != nil || s.Send([]byte{byte(i)}) != nil { // the second one in one frame
				break
			}
		}
		if _, err := s.Recv(); err != io.EOF {
			t.Error(err)
		}
	})
}

// A message that was aborted leaves its memory to nobody: the other side has chosen
// how much that is.
func TestAbortedMessageLeavesNoMemory(t *testing.T) {
	const total, part = 900 << 10, 60 << 10
	a := meetStreams(t, way{"unix", false}, &Config{Limits: Limits{MaxMessage: 1 << 20}}, nil)
	s := openStream(t, a.c, "x")
	if err := s.SendHeader(); err != nil {
		t.Fatal(err)
	}
	a.next(FrameOpen)
	go func() {
		a.send(dataBackBegin(total, string(make([]byte, part))))
		for range 10 {
			a.send(dataBackPart(FlagMore, string(make([]byte, part))))
		}
		a.send(cat(abortBack(1), dataBack("behind it")))
	}()
	if b, err := s.Recv(); string(b) != "behind it" || err != nil || cap(b) > 1024 {
		t.Errorf("%q of capacity %d, %v", b, cap(b), err)
	}
}

// A Recv that fails inside a message keeps its part: where the reader still takes in
// the rest, the tail must not look like a message.
func TestRecvFailsInsideAMessage(t *testing.T) {
	a := meetStreams(t, way{"unix", false}, nil, nil)
	s := openStream(t, a.c, "x")
	if err := s.SendHeader(); err != nil {
		t.Fatal(err)
	}
	a.next(FrameOpen)
	a.send(dataBackBegin(9, "abc"))
	until(t, "a part to arrive", s.in.there)
	over := errors.New("over")
	s.in.end(over, false) // as at the connection's end, which the reader has not seen yet
	before := []byte("before")
	if b, err := s.AppendRecv(before); string(b) != "before" || err != over {
		t.Errorf("%q, %v", b, err)
	}
	s.in.put(dataBackPart(FlagMore, "def"), nil, true)
	s.in.put(dataBackPart(0, "ghi"), nil, true)
	if b, err := s.AppendRecv(before); string(b) != "beforeabcdefghi" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}
