package plugwire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
)

// pluginListeners are where a plugin can be reached, best first. Each has a Server
// of its own: they differ in TLS.
type pluginListeners []pluginListener

type pluginListener struct {
	srv *Server
	l   net.Listener
}

// bind binds each transport that the host allows and that can be had, and writes
// their addresses, and why the others were passed over, into line.
func (s *pluginServer) bind(mux *Mux, line *launchLine) error {
	var auto *TLSConfig // one key for all of them, when it is needed
	for _, scheme := range s.order.transports {
		cfg := *s.cfg
		l, err := s.listenOn(scheme, mux, &cfg, &auto, line)
		if err != nil {
			line.fields = append(line.fields, launchField{lineSkip + scheme, err.Error()})
			continue
		}
		s.listeners = append(s.listeners, *l)
		line.addAddr(launchAddr{scheme, l.l.Addr().String()})
	}
	if s.order.fd != 0 && !slices.ContainsFunc(s.listeners, func(l pluginListener) bool { return l.l.Addr().Network() == socketpairScheme }) {
		if nc, err := inheritedSocketpair(s.order.fd); err == nil {
			nc.Close()
		}
	}
	if len(s.listeners) > 0 {
		return nil
	}
	why := fmt.Sprintf("none of the transports that the host allows can be had: %q", s.order.transports)
	for _, f := range line.fields {
		if strings.HasPrefix(f.key, lineSkip) {
			why += "; " + f.value
		}
	}
	return &Error{Code: Unavailable, Op: "launch", Message: why}
}

// listenOn binds one transport. cfg is a copy of the plugin's, for its Server.
func (s *pluginServer) listenOn(scheme string, mux *Mux, cfg *Config, auto **TLSConfig, line *launchLine) (*pluginListener, error) {
	if cfg.Transports != nil && !slices.Contains(cfg.Transports, scheme) {
		return nil, fmt.Errorf("its %s allows %q only", cfg.orderName(), cfg.Transports)
	}
	if s.order.autoTLS(scheme) && !cfg.hasTLS() {
		if *auto == nil {
			t, pin, err := newAutoTLS("plugwire plugin")
			if err != nil {
				return nil, err
			}
			t.pin = s.order.pin
			*auto, line.cert = &t, pin
		}
		cfg.TLS = **auto
	}
	if why := cfg.misses(scheme, cfg.hasTLS(), thisPlatform()); why != "" {
		return nil, errors.New("its Config." + why)
	}
	switch {
	case s.wire != nil:
		cfg.Custom = inheritedOnly(stdioScheme, s.wire)
	case scheme == socketpairScheme && s.order.fd != 0:
		nc, err := inheritedSocketpair(s.order.fd)
		if err != nil {
			return nil, err
		}
		cfg.Custom = inheritedOnly(scheme, nc)
	}
	pinned := cfg.TLS.pin != ""
	srv := &Server{Mux: mux, Config: cfg}
	cfg.OnConn = func(c *Conn) { s.onConn(c, srv) }
	cfg.secret = s.order.secret
	cfg.vouch = func(p *Peer) error { return s.vouch(p, pinned) }
	l, err := srv.Listen(s.bindAddr(scheme))
	if err != nil {
		return nil, err
	}
	return &pluginListener{srv, l}, nil
}

// serve serves on all of them, and returns when none is left, with the first error
// that is more than the end of a Server.
func (ls pluginListeners) serve() error {
	errs := make([]error, len(ls))
	var wg sync.WaitGroup
	for i, l := range ls {
		wg.Go(func() { errs[i] = l.srv.Serve(l.l) })
	}
	wg.Wait()
	for _, err := range errs {
		if !errors.Is(err, ErrServerClosed) {
			return err
		}
	}
	return ErrServerClosed
}

// close closes all but the one of srv, which may be nil. Their Servers have no
// connection: the first is the host's.
func (ls pluginListeners) close(srv *Server) {
	for _, l := range ls {
		if l.srv != srv {
			l.srv.Close()
			l.l.Close() // also when Serve had not begun
		}
	}
}

// shutdown ends all in order, as far as ctx lets it.
func (ls pluginListeners) shutdown(ctx context.Context) {
	for _, l := range ls {
		if l.srv.Shutdown(ctx) != nil {
			l.srv.Close()
		}
		l.l.Close() // also when Serve had not begun
	}
}
