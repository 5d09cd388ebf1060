package plugwire

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// Dial connects to the server at addr, a URI such as "unix:///run/app.sock" or
// "tcp://127.0.0.1:7000", and runs the handshake. ctx bounds both, beside
// Config.DialTimeout and Config.HandshakeTimeout; it does not bound the
// connection's life.
func Dial(ctx context.Context, addr string, cfg *Config) (*Conn, error) {
	cfg = cfg.withDefaults()
	t, err := cfg.transportOf("dial", addr)
	if err != nil {
		return nil, err
	}
	dctx, cancel := context.WithTimeout(ctx, cfg.DialTimeout)
	nc, err := t.Dial(dctx, addr, cfg)
	cancel()
	if err != nil {
		var e *Error
		if !errors.As(err, &e) {
			err = &Error{Code: Unavailable, Op: "dial", Addr: addr, Err: err, notRun: true}
		}
		return nil, err
	}
	return open(ctx, nc, true, addr, cfg)
}

// A Server serves the methods of a Mux to those who connect. Config may be nil;
// neither field may change once the server is in use.
type Server struct {
	Mux    *Mux
	Config *Config

	once sync.Once
	cfg  *Config // with defaults, and Mux in it

	starting context.Context // of handshakes; ends when no more are to be finished
	refuse   context.CancelFunc

	mu         sync.Mutex
	closed     bool
	aborted    bool // Close has been called
	listeners  map[net.Listener]struct{}
	conns      map[*Conn]struct{}
	handshakes map[net.Conn]struct{}
	served     Stats         // of connections that have ended
	quiet      chan struct{} // closed and replaced when a connection ends
}

func (s *Server) config() *Config {
	s.once.Do(func() {
		s.cfg = s.Config.withDefaults()
		s.cfg.Mux = s.Mux
		s.listeners = make(map[net.Listener]struct{})
		s.conns = make(map[*Conn]struct{})
		s.handshakes = make(map[net.Conn]struct{})
		s.quiet = make(chan struct{})
		s.starting, s.refuse = context.WithCancel(context.Background())
	})
	return s.cfg
}

// Listen listens at addr with the server's Config; see Dial for addresses.
// "unix:" makes a socket with a random name in a private directory, "tcp:"
// takes a free port of the loopback address; the listener's Addr tells which.
// On Unix "systemd:" takes the socket with which systemd has started this process
// (socket activation), "systemd:NAME" the one whose FileDescriptorName= is NAME;
// each can be taken once. A dialler sees who made such a Unix socket as its
// server, which is root as a rule: see Config.Unix.ServerUIDs.
func (s *Server) Listen(addr string) (net.Listener, error) {
	cfg := s.config()
	t, err := cfg.transportOf("listen", addr)
	if err != nil {
		return nil, err
	}
	return t.Listen(context.Background(), addr, cfg)
}

// ListenAndServe listens at addr and serves until Shutdown, Close or an error.
func (s *Server) ListenAndServe(addr string) error {
	l, err := s.Listen(addr)
	if err != nil {
		return err
	}
	return s.Serve(l)
}

// acceptPause is how long Serve waits after a failed Accept, at first and at most.
const (
	acceptPauseLeast = 5 * time.Millisecond
	acceptPauseMost  = time.Second
)

// Serve accepts connections from l, which it closes in the end, and serves them.
// It returns ErrServerClosed after Shutdown or Close, and otherwise the error
// that ended l. An Accept that fails for want of descriptors or memory is tried
// again after a growing pause.
func (s *Server) Serve(l net.Listener) error {
	cfg := s.config()
	defer l.Close()
	if !s.addListener(l) {
		return ErrServerClosed
	}
	pause := acceptPauseLeast
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			pause = acceptPauseLeast
			s.accepted(nc, cfg)
			continue
		case s.isClosed():
			return ErrServerClosed
		case !temporary(err):
			s.removeListener(l)
			return err
		}
		if cfg.Logger != nil {
			cfg.Logger.Warn("plugwire: accept failed", "addr", addrURI(l.Addr()), "err", err, "pause", pause)
		}
		if !s.pause(pause) {
			return ErrServerClosed
		}
		pause = min(2*pause, acceptPauseMost)
	}
}

// pause waits for d; false means that the server was closed meanwhile.
func (s *Server) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		s.mu.Lock()
		closed, changed := s.closed, s.quiet
		s.mu.Unlock()
		if closed {
			return false
		}
		select {
		case <-timer.C:
			return true
		case <-changed:
		}
	}
}

// accepted runs the handshake of an accepted connection off the accept loop.
func (s *Server) accepted(nc net.Conn, cfg *Config) {
	s.mu.Lock()
	full := len(s.handshakes) >= cfg.Limits.MaxHandshakes || len(s.conns)+len(s.handshakes) >= cfg.Limits.MaxConns
	if s.closed || full {
		s.mu.Unlock()
		nc.Close()
		if full && cfg.Logger != nil {
			cfg.Logger.Warn("plugwire: connection refused: Limits.MaxConns or Limits.MaxHandshakes reached")
		}
		return
	}
	s.handshakes[nc] = struct{}{}
	s.mu.Unlock()
	go func() {
		if err := s.serve(s.starting, nc, cfg); err != nil && cfg.Logger != nil {
			cfg.Logger.Warn("plugwire: handshake failed", "err", err)
		}
	}()
}

// ServeConn runs the accepting side of the handshake on nc, within ctx, and
// serves the connection until it ends. It returns the handshake's error, or nil
// after the connection's end.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) error {
	cfg := s.config()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		nc.Close()
		return ErrServerClosed
	}
	s.handshakes[nc] = struct{}{}
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.starting, cancel)()
	return s.serve(ctx, nc, cfg)
}

func (s *Server) serve(ctx context.Context, nc net.Conn, cfg *Config) error {
	c, err := open(ctx, nc, false, "", cfg)
	s.mu.Lock()
	delete(s.handshakes, nc)
	if err != nil {
		s.wake()
		s.mu.Unlock()
		return err
	}
	closed, aborted := s.closed, s.aborted
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	switch {
	case aborted:
		c.fail(closedError)
	case closed: // the other side has learned that it is connected, and may have called
		c.Shutdown(context.Background()) // until Server.Shutdown gives up
	}
	<-c.Done()
	s.mu.Lock()
	delete(s.conns, c)
	s.served.add(c.Stats())
	s.wake()
	s.mu.Unlock()
	return nil
}

// wake wakes those who wait for connections to end. Called with mu held.
func (s *Server) wake() {
	close(s.quiet)
	s.quiet = make(chan struct{})
}

func (s *Server) addListener(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) removeListener(l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// stop closes listeners, has handshakes end that wait for the other side, and
// returns the connections.
func (s *Server) stop(abort bool) []*Conn {
	s.config()
	s.refuse()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aborted = s.aborted || abort
	if !s.closed {
		s.closed = true
		s.wake()
	}
	for l := range s.listeners {
		l.Close()
		delete(s.listeners, l)
	}
	if abort {
		for nc := range s.handshakes {
			nc.Close()
		}
	}
	conns := make([]*Conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	return conns
}

// Shutdown ends the server in order: it accepts nothing more, drains every
// connection (see Conn.Shutdown), and returns when all have ended. When ctx ends
// first, what is left is closed at once and the context's error returned.
func (s *Server) Shutdown(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, c := range s.stop(false) {
		wg.Go(func() { c.Shutdown(ctx) })
	}
	wg.Wait()
	for {
		s.mu.Lock()
		left, changed := len(s.conns)+len(s.handshakes), s.quiet
		s.mu.Unlock()
		if left == 0 {
			return ctx.Err()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			s.Close()
			return ctx.Err()
		}
	}
}

// Close ends the server at once: listeners and connections are closed, calls
// that run lose their replies, and it does not wait for handlers.
func (s *Server) Close() error {
	for _, c := range s.stop(true) {
		c.fail(closedError)
	}
	return nil
}

// Stats returns the sums over all connections, open or not.
func (s *Server) Stats() Stats {
	s.config()
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := s.served
	for c := range s.conns {
		sum.add(c.Stats())
	}
	return sum
}

func (s *Stats) add(t Stats) {
	s.CallsSent += t.CallsSent
	s.CallsServed += t.CallsServed
	s.BytesWritten += t.BytesWritten
	s.BytesRead += t.BytesRead
	s.Writes += t.Writes
	s.Reads += t.Reads
}
