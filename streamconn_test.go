package plugwire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"
)

// connPair returns the two ends of a stream as net.Conns.
func connPair(t testing.TB, transport string, cfg *Config) (opened, accepted net.Conn) {
	t.Helper()
	conns, done := make(chan net.Conn), make(chan struct{})
	m := NewMux()
	m.HandleStream("conn", func(s *Stream) error {
		conns <- s.NetConn()
		<-done
		return nil
	})
	var d Config
	if cfg != nil {
		d = *cfg
	}
	d.Mux = m
	x, y := pair(t, transport, cfg, &d)
	s := openStream(t, x, "conn")
	if err := s.SendHeader(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(done)
		s.Close()
		until(t, "the slots to be free", func() bool { return y.servingCount.Load() == 0 })
		accounts(t, x, y)
	})
	return s.NetConn(), receive(t, "the stream", conns)
}

func TestStreamConnCarriesBytes(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		a, b := connPair(t, transport, &Config{Limits: Limits{StreamWindow: 50000}})
		want := fill(3<<20, 7)
		var wg sync.WaitGroup
		wg.Go(func() { // echoes until the half-close, then half-closes
			if _, err := io.Copy(b, b); err != nil {
				t.Error(err)
			}
			b.(interface{ CloseWrite() error }).CloseWrite()
		})
		wg.Go(func() {
			if n, err := a.Write(want); n != len(want) || err != nil {
				t.Error(n, err)
			}
			a.(interface{ CloseWrite() error }).CloseWrite()
		})
		got, err := io.ReadAll(a)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
		}
		wg.Wait()
		if _, err := a.Write([]byte("x")); err == nil {
			t.Error("Write after CloseWrite")
		}
	})
}

func TestStreamConnDeadlines(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		a, b := connPair(t, transport, &Config{Limits: Limits{StreamWindow: 5000}})
		timeout := func(err error) {
			t.Helper()
			var ne net.Error
			if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &ne) || !ne.Timeout() {
				t.Errorf("%v", err)
			}
		}
		a.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		_, err := a.Read(make([]byte, 1))
		timeout(err)
		a.SetWriteDeadline(time.Now().Add(5 * time.Millisecond))
		n, err := a.Write(make([]byte, 1<<20))
		timeout(err)
		a.SetDeadline(time.Time{})
		got := make(chan int64, 1)
		go func() { m, _ := io.Copy(io.Discard, b); got <- m }()
		m, err := a.Write(make([]byte, 1000))
		if err != nil {
			t.Error(err)
		}
		go b.Write([]byte("y"))
		if _, err := io.ReadFull(a, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if g := receive(t, "the end", got); g != int64(n+m) {
			t.Errorf("%d bytes arrived of %d and %d", g, n, m)
		}
		for _, err := range []error{a.Close(), a.SetDeadline(time.Time{})} {
			if !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}
		// Who goes on writing to it learns that it is closed.
		for err = nil; err == nil; _, err = b.Write(make([]byte, 100)) {
		}
	})
}

// Close ends a Read and a Write that wait.
func TestStreamConnCloseWakes(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		a, _ := connPair(t, transport, &Config{Limits: Limits{StreamWindow: 5000}})
		errs := make(chan error, 2)
		go func() { _, err := a.Read(make([]byte, 1)); errs <- err }()
		go func() { _, err := a.Write(make([]byte, 1<<20)); errs <- err }()
		time.Sleep(5 * time.Millisecond) // or they find it closed
		a.Close()
		for range 2 {
			if err := receive(t, "an end", errs); !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}
	})
}

// A handler that has handed its end on need only wait for the stream's context.
func TestStreamConnCloseEndsTheHandlersContext(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		conns := make(chan net.Conn)
		m := NewMux()
		m.HandleStream("conn", func(s *Stream) error {
			conns <- s.NetConn()
			<-s.Context().Done()
			return nil
		})
		m.HandleFunc("open", func(ctx context.Context, _ []byte) ([]byte, error) {
			info, _ := InfoFromContext(ctx)
			s, err := info.Conn.OpenStream(ctx, "conn")
			if err != nil {
				return nil, err
			}
			s.NetConn().Close()
			return nil, ctx.Err() // which is not the stream's to end
		})
		x, y := pair(t, transport, serves(m), serves(m))
		s := openStream(t, x, "conn")
		a := s.NetConn()
		a.Write([]byte("x"))
		b := receive(t, "the stream", conns)
		want := fill(200000, 1)
		if n, err := b.Write(want); n != len(want) || err != nil {
			t.Error(n, err)
		}
		b.Close()
		if got, err := io.ReadAll(a); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
		}
		go func() { (<-conns).Close() }()
		if _, err := x.Call(background, "open", nil); err != nil {
			t.Error(err)
		}
		accounts(t, x, y)
	})
}

// Close with something unread ends a Write of the other side that waits for it
// to be read.
func TestStreamConnCloseUnread(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		for _, name := range []string{"queued", "taken"} {
			for _, swap := range []bool{false, true} {
				a, b := connPair(t, transport, &Config{Limits: Limits{StreamWindow: 5000}})
				if swap {
					a, b = b, a
				}
				wrote := make(chan error, 1)
				go func() {
					var err error
					for err == nil {
						_, err = b.Write(make([]byte, 100))
					}
					wrote <- err
				}()
				if name == "taken" {
					a.Read(make([]byte, 1))
				}
				time.Sleep(5 * time.Millisecond) // or it finds the stream ended
				a.Close()
				receive(t, name+": the end of Write", wrote)
			}
		}
	})
}

// A deadline that is set while the connection is being closed does not outlive that.
func TestStreamConnDeadlineWhileClosing(t *testing.T) {
	a, _ := connPair(t, "pipe", nil)
	c := a.(*streamConn).s.NetConn().(*streamConn) // another view, which is never closed in earnest
	c.writeBy.mu.Lock()
	set := make(chan error)
	go func() { set <- c.SetWriteDeadline(time.Time{}) }()
	time.Sleep(5 * time.Millisecond) // it has found the connection open, and waits for the lock
	c.closed.Store(true)             // what Close does
	close(c.writeBy.done)
	c.writeBy.mu.Unlock()
	<-set
	if !isClosed(c.writeBy.wait()) {
		t.Error("a Write that waits would not learn of Close")
	}
}

// Deadlines hold also while the other side takes nothing off the connection.
func TestStreamConnDeadlinesOfAStuckConnection(t *testing.T) {
	c, _ := scripted(t, "pipe", &Config{Limits: Limits{StreamWindow: 64 << 20}, CloseTimeout: 10 * time.Millisecond})
	watchdog(t)
	first, second := openStream(t, c, "conn").NetConn(), openStream(t, c, "conn").NetConn()
	first.SetDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := first.Write(make([]byte, 1<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Write: %d, %v", n, err)
	}
	for err := error(nil); err == nil; _, err = first.Write(make([]byte, 1)) { // to the last byte
		first.SetDeadline(time.Now().Add(20 * time.Millisecond))
	}
	second.SetDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := second.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read: %v", err)
	}
	second.SetDeadline(time.Time{})
	read := make(chan error)
	go func() { _, err := second.Read(make([]byte, 1)); read <- err }()
	time.Sleep(5 * time.Millisecond) // or it finds it closed
	second.Close()
	if err := receive(t, "the end of Read", read); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	first.Close()
}

// The end of the stream, also by its context, ends a Write, and a Read that has yet
// to open it, while the other side takes nothing off the connection.
func TestStreamConnEndsOnAStuckConnection(t *testing.T) {
	ends := map[string]struct {
		end  func(s *Stream, cancel func())
		code Code
	}{
		"context": {func(_ *Stream, cancel func()) { cancel() }, Canceled},
		"Reset":   {func(s *Stream, _ func()) { s.Reset(Aborted) }, Aborted},
		"Close":   {func(s *Stream, _ func()) { s.Close() }, Canceled},
	}
	for _, network := range []string{"unix", "pipe"} {
		for name, row := range ends {
			t.Run(network+" "+name, func(t *testing.T) {
				watchdog(t)
				hello := streamHello()
				hello.limits.streamWindow = 64 << 20 // nothing waits for that
				c := meetStreams(t, way{network, true}, &Config{CloseTimeout: 10 * time.Millisecond}, hello).c
				var streams [3]*Stream
				var cancels [3]context.CancelFunc
				var over [3]chan error
				for i := range streams {
					ctx, cancel := context.WithCancel(background)
					defer cancel()
					s, err := c.OpenStream(ctx, "s")
					if err != nil {
						t.Fatal(err)
					}
					streams[i], cancels[i], over[i] = s, cancel, make(chan error, 1)
				}
				waiting := func(n uint64) func() bool {
					return func() bool { c.out.Lock(); defer c.out.Unlock(); return c.out.Busy() && c.out.Stalls() >= n }
				}
				for i := range 2 {
					go func() { _, err := streams[i].NetConn().Write(make([]byte, 16<<20)); over[i] <- err }()
				}
				until(t, "a Write to wait for room", waiting(1))
				go func() { _, err := streams[2].NetConn().Read(make([]byte, 1)); over[2] <- err }()
				until(t, "Read to wait for room", waiting(2))
				for _, i := range []int{2, 1, 0} {
					row.end(streams[i], cancels[i])
					if err := receive(t, "the end", over[i]); CodeOf(err) != row.code {
						t.Errorf("stream %d: %v", i, err)
					}
				}
			})
		}
	}
}

// Close with something unread resets the stream at once, and with nothing unread
// only when more arrives. What was written before is there to be read in any case.
func TestStreamConnCloseUnreadResets(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		for name, row := range map[string]struct {
			sent   []string
			read   int
			resets bool
		}{
			"nothing sent": {},
			"all read":     {sent: []string{"one", "", "two"}, read: 6},
			"nothing read": {sent: []string{"one"}, resets: true},
			"part read":    {sent: []string{"one"}, read: 2, resets: true},
			"one read":     {sent: []string{"one", "two"}, read: 3, resets: true},
		} {
			for _, swap := range []bool{false, true} {
				a, b := connPair(t, transport, nil)
				if swap {
					a, b = b, a
				}
				closer, other := a.(*streamConn).s, b.(*streamConn).s
				cost := 0
				for _, msg := range row.sent {
					if err := other.Send([]byte(msg)); err != nil {
						t.Fatal(err)
					}
					cost += len(msg) + messageCost
				}
				until(t, "all to arrive", func() bool { closer.conn.ensureReader(); return closer.in.got.Load() == uint64(cost) })
				if _, err := io.ReadFull(a, make([]byte, row.read)); err != nil {
					t.Fatal(err)
				}
				if _, err := a.Write([]byte("last words")); err != nil {
					t.Error(err)
				}
				if err := a.Close(); err != nil {
					t.Error(err)
				}
				if row.resets {
					receive(t, name+": the reset", other.Done())
				} else if closer.Err() != nil {
					t.Errorf("%s: %v", name, closer.Err())
				}
				if got, err := io.ReadAll(b); string(got) != "last words" || err != nil {
					t.Errorf("%s: %q, %v", name, got, err)
				}
				if err := other.Err(); row.resets && CodeOf(err) != Canceled || !row.resets && err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	})
}

// What was received before there was a NetConn counts as read.
func TestStreamConnCloseAfterRecv(t *testing.T) {
	a, b := connPair(t, "unix", nil)
	s := a.(*streamConn).s
	b.Write([]byte("header"))
	if msg, err := s.Recv(); string(msg) != "header" || err != nil {
		t.Fatalf("%q, %v", msg, err)
	}
	s.NetConn().Close()
	if err := s.Err(); err != nil {
		t.Error(err)
	}
}

// A deadline that passes when a part of a message has arrived loses nothing of it.
func TestStreamConnDeadlineInsideAMessage(t *testing.T) {
	for _, size := range []int{1, 4, 100} {
		for _, aborted := range []bool{false, true} {
			a := meetStreams(t, way{"unix", false}, nil, nil)
			s := openStream(t, a.c, "x")
			c := s.NetConn()
			if err := s.SendHeader(); err != nil {
				t.Fatal(err)
			}
			a.next(FrameOpen)
			rest, want := dataBackPart(0, "ghi"), "abcdefghi"
			if aborted {
				rest, want = cat(abortBack(1), dataBack("jk")), "jk"
			}
			for _, part := range [][]byte{dataBackBegin(9, "abc"), dataBackPart(FlagMore, "def")} {
				a.send(part)
				c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
				if n, err := c.Read(make([]byte, size)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatalf("%d bytes, %v", n, err)
				}
			}
			a.send(rest)
			c.SetReadDeadline(time.Time{})
			got := make([]byte, len(want))
			for n := 0; n < len(got); {
				m, err := c.Read(got[n:min(n+size, len(got))])
				if n += m; err != nil {
					t.Fatal(err)
				}
			}
			if string(got) != want {
				t.Errorf("read %d at a time, aborted %v: %q, want %q", size, aborted, got, want)
			}
			c.Close()
			a.close()
		}
	}
}

// Who polls while a large message arrives pays for what arrives, not each time for
// all that has.
func TestStreamConnPolledInsideALargeMessage(t *testing.T) {
	const parts, size = 60, 60 << 10
	a := meetStreams(t, way{"unix", false}, &Config{Limits: Limits{MaxMessage: 64 << 20}}, nil)
	s := openStream(t, a.c, "x")
	c := s.NetConn()
	if err := s.SendHeader(); err != nil {
		t.Fatal(err)
	}
	a.next(FrameOpen)
	want := fill(parts*size, 1)
	buf := make([]byte, 2*size)
	var first, last runtime.MemStats
	runtime.ReadMemStats(&first)
	for at := 0; at < len(want)-size; at += size {
		if at == 0 {
			a.send(dataBackBegin(uint32(len(want)), string(want[:size])))
		} else {
			a.send(dataBackPart(FlagMore, string(want[at:at+size])))
		}
		c.SetReadDeadline(time.Now().Add(time.Millisecond))
		if n, err := c.Read(buf); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%d bytes, %v", n, err)
		}
	}
	runtime.ReadMemStats(&last)
	if got := last.TotalAlloc - first.TotalAlloc; got > 10*uint64(len(want)) {
		t.Errorf("%d bytes allocated for a message of %d", got, len(want))
	}
	a.send(dataBackPart(0, string(want[len(want)-size:])))
	c.SetReadDeadline(time.Time{})
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what was read is something else (%v)", err)
	}
}
