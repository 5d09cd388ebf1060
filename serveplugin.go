package plugwire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"
)

// ServePlugin serves mux to the host that launched this process, and returns
// when that host is done with it. A plugin's main function is little else; it
// must not have printed more than 1 MiB to stdout before, and read nothing from
// stdin. What is printed to stdout afterwards goes to stderr: on Unix the
// descriptor 1 is moved there, for good, and on Windows the standard handle.
//
// It returns nil after an orderly end: the host closed the connection or ended
// itself, or this process got SIGTERM (on Windows, Ctrl-Break too). Requests that were received are then
// finished, for at most Config.CloseTimeout. It returns ErrNotPlugin in a process
// that no host launched, and an *Error with Op "launch" when the host is one of
// another program (MagicCookie), speaks no common version (Versions), allows no
// transport that can be had here, or does not connect within
// Config.Launch.StartTimeout. The host gets the same text.
//
// It never ends the process. But a process whose host is gone, which is seen by
// its stdin from before main begins, has 300 ms: what it has started and
// left in its process group is killed at once (where the system cannot list a
// group it gets SIGTERM), and the process itself, if it is still there, after
// that time. Requests are then finished for at most half of it. On Windows the
// system kills all of them at once.
func ServePlugin(mux *Mux, cfg *Config) error {
	text := os.Getenv(launchVar)
	os.Unsetenv(launchVar)
	if text == "" {
		return ErrNotPlugin
	}
	s := &pluginServer{cfg: cfg.withDefaults(), host: make(chan *Conn, 1),
		stdinEnd: make(chan struct{}), stdinSecret: make(chan *secret, 1), term: make(chan os.Signal, 1)}
	signal.Notify(s.term, stopSignals...)
	defer signal.Stop(s.term)
	defer func() { awaitHostsEnd(s.brokeOff) }() // the process may end next
	l, line, err := s.listen(mux, text)
	if err != nil {
		fmt.Println(refusalLine(err))
		return err
	}
	// One write, so that no other output comes between.
	if _, err := os.Stdout.WriteString(line.String() + "\n"); err != nil {
		l.Close()
		s.brokeOff = true
		return &Error{Code: Unavailable, Op: "launch", Message: "printing the launch line", Err: err}
	}
	stdoutToStderr()
	return s.serve(l)
}

// pluginServer serves one host.
type pluginServer struct {
	cfg      *Config
	order    *launchOrder
	srv      *Server
	once     sync.Once
	host     chan *Conn    // of capacity 1: the connection of the host
	stdinEnd chan struct{} // closed by watchStdin when the host is gone
	term     chan os.Signal
	brokeOff bool // the connection to the host, stdin or stdout: perhaps the host is gone

	pinned      bool         // only the host has the key that TLS accepts
	stdinSecret chan *secret // of capacity 1: what watchStdin found on stdin, or nil
}

// listen reads the host's order and binds the first transport that can be had.
func (s *pluginServer) listen(mux *Mux, text string) (net.Listener, *launchLine, error) {
	var err error
	if s.order, err = parseLaunchOrder(text); err != nil {
		return nil, nil, err
	}
	line := new(launchLine)
	if line.app, err = s.order.accept(s.cfg); err != nil {
		return nil, nil, err
	}
	if s.order.stdin {
		go s.watchStdin()
	}
	if s.awaitSecret(); s.order.secret == nil {
		line.fields = append(line.fields, launchField{lineSecret, noLineSecret})
	}
	cfg := *s.cfg
	cfg.OnConn = s.onConn
	cfg.secret, cfg.vouch = s.order.secret, s.vouch
	skip := func(scheme string, why string) {
		line.fields = append(line.fields, launchField{lineSkip + scheme, why})
	}
	for _, scheme := range s.order.transports {
		if s.cfg.Transports != nil && !slices.Contains(s.cfg.Transports, scheme) {
			skip(scheme, fmt.Sprintf("its Config.Transports allows %q only", s.cfg.Transports))
			continue
		}
		cfg := cfg
		if s.order.autoTLS(scheme) && !cfg.hasTLS() {
			if cfg.TLS, line.cert, err = newAutoTLS("plugwire plugin"); err != nil {
				skip(scheme, err.Error())
				continue
			}
			cfg.TLS.pin = s.order.pin
		}
		s.srv = &Server{Mux: mux, Config: &cfg}
		l, err := s.srv.Listen(s.bindAddr(scheme))
		if err != nil {
			skip(scheme, err.Error())
			line.cert = ""
			continue
		}
		s.pinned = cfg.TLS.pin != ""
		line.network, line.address = scheme, l.Addr().String()
		return l, line, nil
	}
	why := fmt.Sprintf("none of the transports that the host allows can be had: %q", s.order.transports)
	for _, f := range line.fields {
		why += "; " + f.value
	}
	return nil, nil, &Error{Code: Unavailable, Op: "launch", Message: why}
}

// bindAddr returns the address to listen on with a transport.
func (s *pluginServer) bindAddr(scheme string) string {
	switch {
	case scheme == "tcp":
		return "tcp://127.0.0.1:0"
	case scheme == "unix" && s.order.dir != "":
		return "unix://" + filepath.Join(s.order.dir, "plugin.sock")
	}
	return scheme + ":" // an automatic one
}

// refusalLine is the launch line of a plugin that cannot serve.
func refusalLine(err error) *launchLine {
	text, code := err.Error(), CodeOf(err)
	if e, ok := err.(*Error); ok {
		text = e.Message
		if e.Hint != "" {
			text += " (" + e.Hint + ")"
		}
	}
	return &launchLine{fields: []launchField{{lineCode, strconv.Itoa(int(code))}, {lineError, text}}}
}

// onConn takes the first connection as the host's. A plugin has one host: others
// are closed.
func (s *pluginServer) onConn(c *Conn) {
	taken := true
	s.once.Do(func() { taken = false })
	if taken {
		go c.Close()
		return
	}
	if s.cfg.OnConn != nil {
		s.cfg.OnConn(c)
	}
	s.host <- c
}

// serve serves until the host is done.
func (s *pluginServer) serve(l net.Listener) error {
	served := make(chan struct{})
	var serveErr error
	go func() {
		serveErr = s.srv.Serve(l)
		close(served)
	}()
	err := s.untilEnd(served)
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.CloseTimeout)
	defer cancel()
	go func() {
		select {
		case <-hostGone:
			time.AfterFunc(hostGrace/2, cancel)
		case <-ctx.Done():
		}
	}()
	if s.srv.Shutdown(ctx) != nil {
		s.srv.Close()
	}
	l.Close() // also when Serve had not begun
	<-served
	if err == nil && !errors.Is(serveErr, ErrServerClosed) {
		err = serveErr
	}
	return err
}

// untilEnd waits for the host to connect and then for a reason to end, and
// returns the error of ServePlugin.
func (s *pluginServer) untilEnd(served <-chan struct{}) error {
	timer := time.NewTimer(s.cfg.Launch.StartTimeout)
	defer timer.Stop()
	var host *Conn
	select {
	case host = <-s.host:
	case <-s.term:
		return nil
	case <-served:
		return nil
	case <-s.stdinEnd:
		select {
		case host = <-s.host:
		default:
			s.brokeOff = true
			return &Error{Code: Unavailable, Op: "launch", Message: "the host ended before it connected"}
		}
	case <-timer.C:
		return &Error{Code: DeadlineExceeded, Op: "launch", Message: fmt.Sprintf(
			"the host did not connect within %v", s.cfg.Launch.StartTimeout)}
	}
	select {
	case <-host.Done():
		s.brokeOff = !saidGoodbye(host)
		return unlessGone(host.Err())
	case <-s.term:
	case <-served:
	case <-s.stdinEnd:
		s.brokeOff = !saidGoodbye(host)
	}
	return nil
}

// saidGoodbye reports whether a connection has ended because one side wanted it,
// rather than because the other was gone.
func saidGoodbye(c *Conn) bool {
	err := c.Err()
	return err == error(theyClosedError) || unlessGone(err) != nil
}

// unlessGone returns nil when err says no more than that the host closed the
// connection or is gone: that is the orderly end of a plugin.
func unlessGone(err error) error {
	var op *net.OpError
	var errno sysErrno // of a read or write around package net
	if errors.As(err, &op) || errors.As(err, &errno) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// awaitSecret has the one-time secret read that comes on stdin. It was written
// before this process ran, but may have a way to go; half of the time that the
// host waits is left for it.
func (s *pluginServer) awaitSecret() {
	if !s.order.secretStdin || !s.order.stdin {
		return
	}
	timer := time.NewTimer(s.cfg.Launch.StartTimeout / 2)
	defer timer.Stop()
	select {
	case s.order.secret = <-s.stdinSecret:
	case <-timer.C:
	}
}

// vouch decides whether a peer can be the host. One that does not prove that it
// knows the secret or has the pinned key must be the process that started this one.
func (s *pluginServer) vouch(p *Peer) error {
	if s.order.secret != nil || s.pinned || p.PID > 0 && p.PID == os.Getppid() {
		return nil
	}
	return &Error{Code: PermissionDenied, Message: "this plugin did not get the one-time secret, and then only the process that started it may connect, over a Unix socket",
		Hint: "what starts the plugin must pass on its stdin, or set Config.Launch.SecretInEnv"}
}

// watchStdin reads the pipe that the host holds open while it lives, after the
// secret if that comes first. A stdin that is no pipe was put there by someone
// between, and says nothing. It may outlive ServePlugin: nothing can interrupt it.
func (s *pluginServer) watchStdin() {
	if !isPipe(os.Stdin) {
		s.stdinSecret <- nil
		return
	}
	if s.order.secretStdin {
		text := make([]byte, secretTextLen)
		n, _ := io.ReadFull(os.Stdin, text)
		key, _ := parseSecret(string(text[:n]))
		s.stdinSecret <- key
	}
	io.Copy(io.Discard, os.Stdin)
	close(s.stdinEnd)
}

func isPipe(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeNamedPipe != 0
}
