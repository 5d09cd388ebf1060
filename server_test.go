package plugwire

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// served starts a server on the transport and returns it, its address, and
// what Serve returns.
func served(t *testing.T, transport string, m *Mux, cfg *Config) (s *Server, addr string, ended chan error) {
	t.Helper()
	s = &Server{Mux: m, Config: testConfig(cfg)}
	l, err := s.Listen(listenAddr(t, transport))
	if err != nil {
		t.Fatal(err)
	}
	ended = make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(background, 5*time.Second)
		defer cancel()
		s.Shutdown(ctx)
	})
	return s, addrURI(l.Addr()), ended
}

func dial(t *testing.T, addr string, m *Mux) *Conn {
	t.Helper()
	c, err := Dial(background, addr, testConfig(serves(m)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeBoth(c) })
	return c
}

func TestServerServesAndShutsDown(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		var k counted
		s, addr, ended := served(t, transport, k.mux(), nil)
		var wg sync.WaitGroup
		for i := range 6 {
			c := dial(t, addr, nil)
			for range 4 {
				wg.Go(func() { k.callUntilRefused(t, c, i) })
			}
		}
		until(t, "traffic", func() bool { return k.good.Load() > 500 })
		ctx, cancel := context.WithTimeout(background, 15*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := receive(t, "Serve", ended); !errors.Is(err, ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
		wg.Wait()
		if k.ran.Load() != k.good.Load() {
			t.Errorf("%d handlers ran, %d replies came", k.ran.Load(), k.good.Load())
		}
		until(t, "one-way messages", func() bool { return k.notesRun.Load() == k.notesSent.Load() })
		if n := s.Stats().CallsServed; n != uint64(k.good.Load()) {
			t.Errorf("Stats: %d calls served, of %d", n, k.good.Load())
		}
		if _, err := Dial(background, addr, testConfig(nil)); err == nil {
			t.Error("Dial after Shutdown")
		}
		if err := s.ListenAndServe("tcp:"); !errors.Is(err, ErrServerClosed) {
			t.Errorf("ListenAndServe after Shutdown: %v", err)
		}
		a, b := net.Pipe()
		defer b.Close()
		if err := s.ServeConn(background, a); !errors.Is(err, ErrServerClosed) {
			t.Errorf("ServeConn after Shutdown: %v", err)
		}
	})
}

// A client that has learned that it is connected may have called before the
// server counts the connection: Shutdown drains it too.
func TestShutdownDrainsWhoHasJustConnected(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		var s *Server
		down := make(chan error, 1)
		connecting, connected := make(chan struct{}), make(chan struct{})
		cfg := &Config{OnConn: func(*Conn) {
			close(connecting)
			<-connected
		}}
		s, addr, _ := served(t, transport, echoMux(nil), cfg)
		c := dial(t, addr, nil)
		call := make(chan error, 1)
		go func() { _, err := c.Call(background, "echo", []byte("x")); call <- err }()
		receive(t, "OnConn", connecting)
		go func() { down <- s.Shutdown(background) }()
		until(t, "Shutdown", s.isClosed)
		close(connected)
		if err := receive(t, "the call", call); err != nil && !NotRun(err) {
			t.Errorf("a call was lost: %v", err)
		}
		if err := receive(t, "Shutdown", down); err != nil {
			t.Error(err)
		}
	})
}

func TestServerCloseEndsEverythingAtOnce(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		s, addr, ended := served(t, transport, echoMux(nil), nil)
		errs := make(chan error, 10)
		for range 5 {
			c := dial(t, addr, nil)
			for range 2 {
				go func() { _, err := c.Call(background, "block", nil); errs <- err }()
			}
		}
		until(t, "calls", func() bool {
			n := int64(0)
			s.mu.Lock()
			defer s.mu.Unlock()
			for c := range s.conns {
				n += c.servingCount.Load()
			}
			return n == 10
		})
		for range 3 {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
		for range 10 {
			wantCode(t, receive(t, "the end of a call", errs), Unavailable, false)
		}
		if err := receive(t, "Serve", ended); !errors.Is(err, ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
		if err := s.Shutdown(background); err != nil {
			t.Errorf("Shutdown after Close: %v", err)
		}
	})
}

func TestContextEndsServerShutdown(t *testing.T) {
	t.Parallel()
	overTransports(t, func(t *testing.T, transport string) {
		unblock := make(chan struct{})
		defer close(unblock)
		m := NewMux()
		var entered atomic.Int32
		m.HandleFunc("stuck", func(context.Context, []byte) ([]byte, error) {
			entered.Add(1)
			<-unblock
			return nil, nil
		})
		s, addr, _ := served(t, transport, m, nil)
		errs := make(chan error, 3)
		for range 3 {
			c := dial(t, addr, nil)
			go func() { _, err := c.Call(background, "stuck", nil); errs <- err }()
		}
		until(t, "the handlers", func() bool { return entered.Load() == 3 })
		ctx, cancel := context.WithTimeout(background, 50*time.Millisecond)
		defer cancel()
		if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: %v", err)
		}
		for range 3 {
			wantCode(t, receive(t, "the end of a call", errs), Unavailable, false)
		}
	})
}

// shortOfDescriptors fails Accept a few times as the system would.
type shortOfDescriptors struct {
	net.Listener
	fail  atomic.Int32
	tries atomic.Int32
}

func (l *shortOfDescriptors) Accept() (net.Conn, error) {
	if l.tries.Add(1); l.fail.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "unix", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.Listener.Accept()
}

func TestAcceptBacksOff(t *testing.T) {
	t.Parallel()
	plainOnly(t)
	watchdog(t)
	s := &Server{Mux: echoMux(nil)}
	l, err := s.Listen("tcp:")
	if err != nil {
		t.Fatal(err)
	}
	short := &shortOfDescriptors{Listener: l}
	short.fail.Store(5)
	ended := make(chan error, 1)
	start := time.Now()
	go func() { ended <- s.Serve(short) }()
	c := dial(t, addrURI(l.Addr()), nil)
	if err := checkCall(background, c, 100, 1); err != nil {
		t.Error(err)
	}
	if d := time.Since(start); d < 5*31*time.Millisecond || d > 3*time.Second { // 5+10+20+40+80 ms
		t.Errorf("five failures took %v", d)
	}
	if n := short.tries.Load(); n > 8 {
		t.Errorf("%d tries", n)
	}
	// Close interrupts the pause.
	short.fail.Store(1 << 30)
	c2, err := net.Dial("tcp", l.Addr().String()) // lets the Accept that waits return
	if err != nil {
		t.Fatal(err)
	}
	defer c2.Close()
	until(t, "failures again", func() bool { return short.tries.Load() > 10 })
	s.Close()
	if err := receive(t, "Serve", ended); !errors.Is(err, ErrServerClosed) {
		t.Errorf("Serve: %v", err)
	}

	// Any other error ends Serve.
	broken := &shortOfDescriptors{Listener: l}
	if err := (&Server{}).Serve(broken); err == nil || errors.Is(err, ErrServerClosed) {
		t.Errorf("Serve of a closed listener: %v", err)
	}
}

// T21: where descriptors have run out, a connection that ends may be what was
// lacking, however long the pause has become.
func TestT21AConnectionThatEndsEndsThePause(t *testing.T) {
	t.Parallel()
	watchdog(t)
	s := &Server{Mux: echoMux(nil)}
	l, err := s.Listen("tcp:")
	if err != nil {
		t.Fatal(err)
	}
	short := &shortOfDescriptors{Listener: l}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(short) }()
	first := dial(t, addrURI(l.Addr()), nil)
	until(t, "the second Accept", func() bool { return short.fail.Load() == -2 })
	short.fail.Store(1 << 30)
	second := dial(t, addrURI(l.Addr()), nil) // the last one for which there is a descriptor
	until(t, "a pause of a second", func() bool { return short.tries.Load() == 2+9 })
	short.fail.Store(0)
	closeBoth(first)
	start := time.Now()
	until(t, "Accept again", func() bool { return short.tries.Load() > 2+9 })
	if d := time.Since(start); d > 500*time.Millisecond {
		t.Errorf("tried again only after %v", d)
	}
	closeBoth(second, dial(t, addrURI(l.Addr()), nil))
	s.Close()
	receive(t, "Serve", ended)
}

func TestMaxConnsAndMaxHandshakes(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		s, addr, _ := served(t, transport, echoMux(nil), &Config{Limits: Limits{MaxConns: 3, MaxHandshakes: 2}})
		cfg := testConfig(nil).withDefaults()
		tr, err := cfg.transportOf("dial", addr)
		if err != nil {
			t.Fatal(err)
		}
		// Two who say nothing fill the handshakes, and keep nobody out.
		for range 2 {
			nc, err := tr.Dial(background, addr, cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
		}
		refused := func() bool {
			c, err := Dial(background, addr, testConfig(nil))
			if err == nil {
				_, err = c.Call(background, "echo", nil)
				closeBoth(c)
			}
			return err != nil
		}
		var conns []*Conn
		for range 3 {
			conns = append(conns, dial(t, addr, nil))
		}
		until(t, "their places", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.conns) == 3 })
		if !refused() {
			t.Error("a fourth connection was accepted")
		}
		closeBoth(conns[0])
		until(t, "room after one has ended", func() bool { return !refused() })
		for _, c := range conns[1:] {
			if err := checkCall(background, c, 100, 1); err != nil {
				t.Error(err)
			}
			closeBoth(c)
		}
	})
}

// A handshake that is over cannot be ended any more to make room: then there is
// one connection too many for a moment.
func TestMaxConnsHoldsForWhoWasEndedTooLate(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		connecting, connected := make(chan struct{}), make(chan struct{})
		var n atomic.Int32
		_, addr, _ := served(t, transport, echoMux(nil), &Config{Limits: Limits{MaxConns: 1}, OnConn: func(*Conn) {
			if n.Add(1) == 1 {
				close(connecting)
				<-connected
			}
		}})
		first := dial(t, addr, nil)
		receive(t, "OnConn", connecting)
		second := dial(t, addr, nil)
		if err := checkCall(background, second, 100, 1); err != nil {
			t.Error(err)
		}
		close(connected)
		receive(t, "the end of the first", first.Done())
		if err := checkCall(background, second, 100, 1); err != nil {
			t.Error(err)
		}
	})
}

func TestOnConn(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		results := make(chan error, 100)
		var seen atomic.Pointer[Conn]
		m := NewMux()
		m.Handle("who", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			if seen.Load() != r.Conn() {
				return reply, errors.New("called before OnConn")
			}
			return reply, nil
		}))
		_, addr, _ := served(t, transport, m, &Config{OnConn: func(c *Conn) {
			seen.Store(c)
			for i := range 20 { // calls may start here, and wait elsewhere
				go func() { results <- checkCall(background, c, 50, uint64(i)) }()
			}
			results <- c.Notify(background, "check", sealed(20, 1))
			time.Sleep(2 * time.Millisecond) // the calls above begin before reading does
		}})
		for range 5 {
			c := dial(t, addr, echoMux(nil))
			if _, err := c.Call(background, "who", nil); err != nil {
				t.Error(err)
			}
			for range 21 {
				if err := receive(t, "a call of OnConn's", results); err != nil {
					t.Error(err)
				}
			}
			accounts(t, c, seen.Load())
			closeBoth(c)
		}
	})
}

func TestOnConnMayClose(t *testing.T) {
	t.Parallel()
	overTransports(t, func(t *testing.T, transport string) {
		m := echoMux(nil)
		_, addr, _ := served(t, transport, m, &Config{CloseTimeout: 50 * time.Millisecond, OnConn: func(c *Conn) { c.Close() }})
		c, err := Dial(background, addr, testConfig(nil))
		if err == nil {
			if _, err := c.Call(background, "echo", nil); err == nil {
				t.Error("a call on a closed connection")
			}
			receive(t, "the end", c.Done())
		}
		until(t, "the Mux to forget the connection", func() bool {
			m.mu.Lock()
			defer m.mu.Unlock()
			return len(m.conns) == 0
		})
	})
}
