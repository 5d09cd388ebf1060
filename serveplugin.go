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
	"sync/atomic"
	"time"
)

// ServePlugin serves mux to the host that launched this process, and returns
// when that host is done with it. A plugin's main function is little else; it
// must not have printed more than 1 MiB to stdout before, and read nothing from
// stdin. What is printed to stdout afterwards goes to stderr: on Unix the
// descriptor 1 is moved there, for good, and on Windows the standard handle.
//
// In a process that got no order from a host in its environment it looks at stdin,
// if that is a pipe or a socket, since a host that launches "ssh HOST PLUGIN" with
// the transport "stdio" sends its order there. What comes instead of one is put
// back, in a new pipe; on Unix a socket stays as it is, and only a connected stream
// is looked at. A stdin that stays silent is waited for: a second, or StartTimeout
// when Config.Transports names "stdio", or not at all when it names only others.
//
// It returns nil after an orderly end: the host closed the connection or ended
// itself, or this process got SIGTERM (on Windows, Ctrl-Break too). Requests that were received are then
// finished, for at most Config.CloseTimeout. It returns ErrNotPlugin in a process
// that no host launched, and an *Error with Op "launch" when the host is one of
// another program (MagicCookie), speaks no common version (Versions), allows no
// transport that can be had here, or does not connect within
// Config.Launch.StartTimeout. The host gets the same text.
//
// A plugin that is to outlive its host (Config.Launch.Detach) goes on when the host's
// connection breaks, and returns nil when no host has come back within that time.
//
// It never ends the process. But a process whose host is gone, which is seen by
// its stdin from before main begins, has 300 ms: what it has started and
// left in its process group is killed at once (where the system cannot list a
// group it gets SIGTERM), and the process itself, if it is still there, after
// that time. Requests are then finished for at most half of it. On Windows the
// system kills all of them at once.
func ServePlugin(mux *Mux, cfg *Config) error {
	s := &pluginServer{cfg: cfg.inRole(asServer).withDefaults(), stdout: os.Stdout, host: make(chan *Conn, 1),
		stdinEnd: make(chan struct{}), stdinSecret: make(chan *secret, 1), term: make(chan os.Signal, 1)}
	err := s.readOrder()
	if err == ErrNotPlugin {
		return err
	}
	signal.Notify(s.term, stopSignals...)
	defer signal.Stop(s.term)
	defer func() { // the process may end next
		if s.order != nil && s.order.detach > 0 && s.order.ownGroup {
			killOthers() // nobody else may be there to do it
		}
		awaitHostsEnd(s.brokeOff)
	}()
	if s.wire != nil {
		defer s.wire.Close()
	}
	var line *launchLine
	if err == nil {
		line, err = s.listen(mux)
	}
	if err != nil {
		fmt.Fprintln(s.stdout, refusalLine(err))
		return err
	}
	// One write, so that no other output comes between.
	if _, err := io.WriteString(s.stdout, line.String()+"\n"); err != nil {
		s.listeners.close(nil)
		s.brokeOff = true
		return &Error{Code: Unavailable, Op: "launch", Message: "printing the launch line", Err: err}
	}
	stdoutToStderr()
	return s.serve()
}

// launched says that ServePlugin was called: what stdin begins with is asked once.
var launched atomic.Bool

// readOrder reads what the host has to tell: from the environment, or from stdin.
func (s *pluginServer) readOrder() (err error) {
	text := os.Getenv(launchVar)
	os.Unsetenv(launchVar)
	if again := launched.Swap(true); again && text == "" {
		return ErrNotPlugin
	}
	if text != "" {
		if s.order, err = parseLaunchOrder(text); err != nil || !s.order.overStdio() {
			return err
		}
	}
	if text, err = orderFromStdin(s.stdinWait()); text == "" && err == nil {
		if s.order == nil {
			return ErrNotPlugin
		}
		return &Error{Code: FailedPrecondition, Op: "launch", Message: "the host's order did not come on stdin",
			Hint: "what starts the plugin must pass on its stdin"}
	}
	if err != nil {
		return &Error{Code: Unavailable, Op: "launch", Message: "putting back what was read of stdin", Err: err}
	}
	if s.wire, err = takeStdio(); err != nil {
		return err
	}
	s.stdout = s.wire
	s.order, err = parseLaunchOrder(text)
	return err
}

// pluginServer serves one host.
type pluginServer struct {
	cfg       *Config
	order     *launchOrder
	stdout    io.Writer  // for the launch line
	wire      *stdioConn // or nil, see transport_stdio.go
	listeners pluginListeners
	host      chan *Conn // of capacity 1: the connection of the host
	hostMu    sync.Mutex
	current   *Conn         // the last of those
	stdinEnd  chan struct{} // closed by watchStdin when the host is gone
	term      chan os.Signal
	brokeOff  bool // the connection to the host, stdin or stdout: perhaps the host is gone

	stdinSecret chan *secret // of capacity 1: what watchStdin found on stdin, or nil
}

// stdinWait is how long the host's order may take to come on stdin. A program that
// nobody launched may have a silent pipe there, and be held up for as long.
func (s *pluginServer) stdinWait() time.Duration {
	switch {
	case s.cfg.Transports == nil:
		return min(time.Second, s.cfg.Launch.StartTimeout)
	case slices.Contains(s.cfg.Transports, stdioScheme):
		return s.cfg.Launch.StartTimeout
	}
	return 0
}

// listen binds the transports that can be had.
func (s *pluginServer) listen(mux *Mux) (_ *launchLine, err error) {
	line := new(launchLine)
	if line.app, err = s.order.accept(s.cfg); err != nil {
		return nil, err
	}
	if s.order.stdin {
		go s.watchStdin()
	}
	if s.awaitSecret(); s.order.secret == nil && s.wire == nil {
		line.fields = append(line.fields, launchField{lineSecret, noLineSecret})
	}
	return line, s.bind(mux, line)
}

// bindAddr returns the address to listen on with a transport.
func (s *pluginServer) bindAddr(scheme string) string {
	if scheme == "unix" && s.order.dir != "" && s.cfg.Unix.Path == "" {
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

// onConn takes the first connection as the host's, and closes the listeners that
// it did not come by. A plugin has one host: others are closed, unless it is to
// outlive that one, and it is gone.
func (s *pluginServer) onConn(c *Conn, by *Server) {
	s.hostMu.Lock()
	free := s.free()
	if free {
		s.current = c
	}
	s.hostMu.Unlock()
	if !free { // it was when vouch looked
		go c.Close()
		return
	}
	s.listeners.close(by)
	if s.cfg.OnConn != nil {
		s.cfg.OnConn(c)
	}
	s.host <- c
}

// hostEndGrace is how long the end of a host's connection may take to be seen
// here when another host has seen its end and comes.
const hostEndGrace = time.Second

// free reports whether there is no host. Called with hostMu held.
func (s *pluginServer) free() bool {
	return s.current == nil || s.order.detach > 0 && closedWithin(s.current.Done(), hostEndGrace)
}

// serve serves until the host is done.
func (s *pluginServer) serve() error {
	served := make(chan struct{})
	var serveErr error
	go func() {
		serveErr = s.listeners.serve()
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
	s.listeners.shutdown(ctx)
	<-served
	if err == nil && !errors.Is(serveErr, ErrServerClosed) {
		err = serveErr
	}
	return err
}

// untilEnd waits for the host to connect and then for a reason to end, and
// returns the error of ServePlugin.
func (s *pluginServer) untilEnd(served <-chan struct{}) error {
	wait, gone := s.cfg.Launch.StartTimeout, s.stdinEnd
	if s.order.detach > 0 { // also before it connects: it may have done its part of that, and have ended
		wait, gone = max(wait, s.order.detach), nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for again := false; ; again = true {
		var host *Conn
		select {
		case host = <-s.host:
		case <-s.term:
			return nil
		case <-served:
			return nil
		case <-gone:
			select {
			case host = <-s.host:
			default:
				s.brokeOff = true
				return &Error{Code: Unavailable, Op: "launch", Message: "the host ended before it connected"}
			}
		case <-timer.C:
			if again {
				return nil
			}
			return &Error{Code: DeadlineExceeded, Op: "launch", Message: fmt.Sprintf(
				"the host did not connect within %v", wait)}
		}
		select {
		case <-host.Done():
			s.brokeOff = !saidGoodbye(host)
		case <-s.term:
			return nil
		case <-served:
			return nil
		case <-gone:
			s.brokeOff = !saidGoodbye(host)
			return nil
		}
		if !s.brokeOff || s.order.detach <= 0 {
			return unlessGone(host.Err())
		}
		timer.Reset(s.order.detach)
	}
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
func (s *pluginServer) vouch(p *Peer, pinned bool) error {
	s.hostMu.Lock()
	free := s.free()
	s.hostMu.Unlock()
	if !free {
		return &Error{Code: FailedPrecondition, Message: "this plugin has a host"}
	}
	if s.order.secret != nil || pinned || s.wire != nil || p.PID > 0 && p.PID == os.Getppid() {
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
	passOn(io.Discard, os.Stdin)
	close(s.stdinEnd)
}

func isPipe(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeNamedPipe != 0
}
