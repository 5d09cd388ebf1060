package plugwire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
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
