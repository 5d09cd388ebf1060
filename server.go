package plugwire

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Dial connects to the server at addr, a URI such as "unix:///run/app.sock" or
// "tcp://127.0.0.1:7000", and runs the handshake. ctx bounds both, beside
// Config.DialTimeout and Config.HandshakeTimeout; it does not bound the
// connection's life.
func Dial(ctx context.Context, addr string, cfg *Config) (*Conn, error) {
	cfg = cfg.inRole(asDialler).withDefaults()
	t, err := cfg.transportOf("dial", addr)
	if err == nil {
		err = setupError("dial", addr, cfg.checkTLS(true, hostOf(addr)))
	}
	if err != nil {
		return nil, err
	}
	dctx, cancel := context.WithTimeout(ctx, cfg.DialTimeout)
	begun := time.Now()
	nc, err := t.Dial(dctx, addr, cfg)
	cancel()
	cfg.logDial(addr, err, time.Since(begun))
	if err != nil {
		var e *Error
		if !errors.As(err, &e) {
			err = &Error{Code: Unavailable, Op: "dial", Addr: addr, Err: err, notRun: true}
		}
		cfg.metrics.failed(schemeOf(addr), err)
		return nil, err
	}
	return open(ctx, nc, true, addr, cfg)
}

// setupError says of an error in Config during which operation it was found.
func setupError(op, addr string, err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	e.Op, e.Addr, e.notRun = op, addr, true
	return e
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
	handshakes map[*greeting]struct{}
	accepted   []*greeting   // those of Serve that have not been made to end, the oldest first
	quiet      chan struct{} // closed and replaced when a connection ends
}

// arrivals counts the connections that were accepted. The number of each is its
// rank among those who wait for a turn to be greeted.
var arrivals atomic.Uint64

type rankKey struct{}

// withRank returns ctx for the handshake of the connection that came last.
func withRank(ctx context.Context) context.Context {
	return context.WithValue(ctx, rankKey{}, arrivals.Add(1))
}

// rankOf returns the rank that withRank gave, or that of who comes now.
func rankOf(ctx context.Context) uint64 {
	if rank, ok := ctx.Value(rankKey{}).(uint64); ok {
		return rank
	}
	return arrivals.Add(1)
}

// A greeting is a connection that is in its handshake.
type greeting struct {
	nc  net.Conn
	end context.CancelCauseFunc // has the handshake end; nothing once it is done
}

func (s *Server) config() *Config {
	s.once.Do(func() {
		s.cfg = s.Config.inRole(asServer).withDefaults()
		s.cfg.Mux = s.Mux
		s.cfg.budget = &budget{most: int64(s.cfg.Limits.MaxServerBytes)}
		s.cfg.metrics = newMetrics(s.Config)
		s.listeners = make(map[net.Listener]struct{})
		s.conns = make(map[*Conn]struct{})
		s.handshakes = make(map[*greeting]struct{})
		s.quiet = make(chan struct{})
		s.starting, s.refuse = context.WithCancel(context.Background())
	})
	return s.cfg
}

// Listen listens at addr with the server's Config; see Dial for addresses.
// "unix:" makes a socket with a random name in a private directory, or that of
// Config.Unix.Path, "npipe:" (on Windows) a pipe with a random name, "tcp:" takes a
// free port of the loopback address, or what Config.TCP says; the listener's Addr
// tells which.
// On Unix "systemd:" takes the socket with which systemd has started this process
// (socket activation), "systemd:NAME" the one whose FileDescriptorName= is NAME;
// each can be taken once. A dialler sees who made such a Unix socket as its
// server, which is root as a rule: see Config.Unix.ServerUIDs.
func (s *Server) Listen(addr string) (net.Listener, error) {
	cfg := s.config()
	t, err := cfg.transportOf("listen", addr)
	if err == nil {
		err = setupError("listen", addr, cfg.checkTLS(false, ""))
	}
	if err != nil {
		return nil, err
	}
	l, err := t.Listen(context.Background(), addr, cfg)
	cfg.logListen(addr, l, err)
	return l, err
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
// One that listens where Listen would refuse to, it refuses as well. It returns ErrServerClosed after Shutdown or Close, and otherwise the error
// that ended l. An Accept that fails for want of descriptors or memory is tried
// again after a growing pause.
func (s *Server) Serve(l net.Listener) error {
	cfg := s.config()
	defer l.Close()
	if addr := l.Addr(); addr.Network() == "tcp" {
		if err := cfg.mayUse("listen", addrURI(addr), addr.String()); err != nil {
			return err
		}
	}
	if !s.addListener(l) {
		return ErrServerClosed
	}
	pause := acceptPauseLeast
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			pause = acceptPauseLeast
			s.greet(nc, cfg)
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

// pause waits for d, or until a connection has ended, which may be what was
// lacking; false means that the server was closed meanwhile.
func (s *Server) pause(d time.Duration) bool {
	s.mu.Lock()
	closed, changed := s.closed, s.quiet
	s.mu.Unlock()
	if closed {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-changed:
	}
	return !s.isClosed()
}

var errCrowdedOut = errors.New("plugwire: ended to make room for a newer connection (Limits.MaxHandshakes, MaxConns)")

// greet runs the handshake of an accepted connection off the accept loop. Where
// there are as many handshakes as may be, the oldest is ended, as with half-open
// connections of TCP: who is honest is done within a round trip and seldom the
// oldest, whereas to refuse the newest would let a few who stall keep everybody
// out until the deadline. Connections that have proven themselves keep their
// places.
func (s *Server) greet(nc net.Conn, cfg *Config) {
	ctx, end := context.WithCancelCause(withRank(s.starting))
	g := &greeting{nc, end}
	s.mu.Lock()
	room := cfg.Limits.MaxConns - len(s.conns)
	if s.closed || room <= 0 {
		s.mu.Unlock()
		end(nil)
		nc.Close()
		if room <= 0 {
			cfg.metrics.failed(nc.RemoteAddr().Network(), &Error{Code: ResourceExhausted})
		}
		if room <= 0 && cfg.Logger != nil {
			cfg.Logger.Warn("plugwire: connection refused: Limits.MaxConns reached")
		}
		return
	}
	for len(s.accepted) >= min(room, cfg.Limits.MaxHandshakes) {
		s.accepted[0].end(errCrowdedOut)
		s.accepted = s.accepted[1:]
	}
	s.accepted = append(s.accepted, g)
	s.handshakes[g] = struct{}{}
	s.mu.Unlock()
	go func() {
		defer end(nil)
		_, err := s.serve(ctx, g, cfg)
		if err != nil && context.Cause(ctx) == errCrowdedOut {
			err = errCrowdedOut
		}
		if err != nil && cfg.Logger != nil {
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
	g := &greeting{nc: nc}
	s.handshakes[g] = struct{}{}
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.starting, cancel)()
	c, err := s.serve(ctx, g, cfg)
	if err == nil {
		<-c.Done()
	}
	return err
}

// serve runs the handshake and returns the connection, which is among the
// Server's until it is over.
func (s *Server) serve(ctx context.Context, g *greeting, cfg *Config) (*Conn, error) {
	c, err := open(ctx, g.nc, false, "", cfg)
	if turnedAway(err) {
		cfg.metrics.count(g.nc.RemoteAddr().Network(), func(t *TransportStats) { t.Refused++ })
	}
	s.mu.Lock()
	delete(s.handshakes, g)
	if i := slices.Index(s.accepted, g); i >= 0 {
		s.accepted = slices.Delete(s.accepted, i, i+1)
	}
	if err != nil {
		s.wake()
		s.mu.Unlock()
		return nil, err
	}
	closed, aborted := s.closed, s.aborted
	// Who is through may have been made to end too late, when another had its place.
	crowded := g.end != nil && len(s.conns) >= cfg.Limits.MaxConns
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	c.whenOver(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, c)
		s.wake()
	})
	switch {
	case aborted:
		c.fail(closedError)
	case crowded:
		c.closeFor(&Error{Code: ResourceExhausted, Op: "close", Err: errCrowdedOut})
	case closed: // the other side has learned that it is connected, and may have called
		c.Shutdown(context.Background()) // until Server.Shutdown gives up
	}
	return c, nil
}

// turnedAway says of a failed handshake that it was this side which refused the
// other, for who it is or what it could not show.
func turnedAway(err error) bool {
	var e *Error
	return errors.As(err, &e) && !e.told && (e.Code == PermissionDenied || e.Code == Unauthenticated)
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
		for g := range s.handshakes {
			g.nc.Close()
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

// Stats returns the counters of all connections, open or not.
func (s *Server) Stats() Stats {
	return s.config().metrics.stats()
}
