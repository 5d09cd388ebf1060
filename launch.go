package plugwire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// An instance is one process of a plugin and the connection to it, from start to
// end. The two end together: a process that exits ends the pending calls, and
// one whose connection ends, for whatever reason, has ExitTimeout to exit before
// it is killed.
type instance struct {
	cfg       *Config     // with defaults
	name      string      // the command, for errors
	dir       *privateDir // the socket's, or nil
	pair      net.Conn    // this side's end of a socketpair, or nil
	passed    *os.File    // the plugin's
	proc      *process
	conn      *Conn
	selection *Selection
	secret    *secret // for redact

	attachment Attachment // or empty

	done     chan struct{} // closed by watch, when everything is gone
	err      error         // how it ended; read after done
	reported chan struct{} // closed when that is in an event
}

// startInstance starts a plugin as cmd says and connects to it. cfg is the
// caller's, without defaults. After an error nothing is left.
func startInstance(ctx context.Context, cmd *exec.Cmd, cfg *Config) (*instance, error) {
	cfg = cfg.inRole(asDialler)
	p := newInstance(commandName(cmd), cfg)
	if phase, err := p.start(ctx, cmd, cfg); err != nil {
		return nil, p.failed(ctx, phase, err)
	}
	go p.watch()
	return p, nil
}

func newInstance(name string, cfg *Config) *instance {
	return &instance{cfg: cfg.withDefaults(), name: name, done: make(chan struct{}), reported: make(chan struct{})}
}

// checkTemplate refuses a command that cannot be a template.
func checkTemplate(cmd *exec.Cmd) error {
	var why, hint string
	switch {
	case cmd == nil:
		why = "the command is nil"
	case cmd.Process != nil:
		why, hint = "the command was already started", "pass a new exec.Command; Launch starts it"
	case cmd.Stdin != nil:
		why, hint = "the command has Stdin set", "Launch needs stdin for itself: its end tells the plugin that the host is gone"
	case cmd.Stdout != nil:
		why, hint = "the command has Stdout set", "Launch needs stdout for itself: it reads the launch line there"
	case cmd.Cancel != nil:
		why, hint = "the command comes from exec.CommandContext", "use exec.Command; the context given to Launch bounds the start only"
	default:
		return nil
	}
	return &Error{Code: InvalidArgument, Op: "launch", Addr: commandName(cmd), Message: why, Hint: hint}
}

// commandName is how errors call the plugin. Arguments are left out: they may be
// nobody's business.
func commandName(cmd *exec.Cmd) string {
	if cmd == nil {
		return ""
	}
	return plainText(cmd.Path, maxLaunchSeen)
}

// The phases of a start, as errors name them.
const (
	phasePrepare = "preparing"
	phaseStart   = "starting the process"
	phaseLine    = "waiting for its launch line"
	phaseConnect = "connecting"
	phaseHello   = "handshake"
)

// start does what startInstance does, and returns the phase in which it failed. cfg is
// the caller's, without defaults.
func (p *instance) start(ctx context.Context, cmd *exec.Cmd, cfg *Config) (phase string, err error) {
	if err := ctx.Err(); err != nil {
		return phasePrepare, err
	}
	offer, err := p.offer()
	if err != nil {
		return phasePrepare, err
	}
	order := &launchOrder{cookie: p.cfg.Launch.MagicCookie, dir: p.dir.name(), versions: p.cfg.Versions, stdin: true, detach: p.cfg.Launch.Detach}
	for _, c := range offer {
		if c.Reason == "" {
			order.transports = append(order.transports, c.Transport)
		}
	}
	if !order.overStdio() {
		p.secret = newSecret()
		order.secret, order.secretStdin = p.secret, !p.cfg.Launch.SecretInEnv
	}
	auto, err := p.offerTLS(order)
	if err != nil {
		return phasePrepare, err
	}
	order.passed = p.passed
	p.proc, err = startProcess(cmd, order, p.cfg)
	if p.passed != nil {
		p.passed.Close()
	}
	if err != nil {
		return phaseStart, err
	}
	line, err := p.awaitLine(ctx)
	if err != nil {
		return phaseLine, err
	}
	if err := order.check(line); err != nil {
		return phaseLine, err
	}
	return p.connect(ctx, cfg, offer, order, line, auto)
}

// offerTLS adds to order the transports that automatic mutual TLS is for, and
// returns this side's settings of it.
func (p *instance) offerTLS(order *launchOrder) (auto TLSConfig, err error) {
	for _, scheme := range order.transports {
		if p.cfg.autoTLS(scheme) {
			order.tls = append(order.tls, scheme)
		}
	}
	if len(order.tls) > 0 {
		auto, order.pin, err = newAutoTLS("plugwire host")
	}
	return auto, err
}

// vouch decides whether the peer can be the plugin: it is the process that was
// started or, when it is going to prove that it knows the secret or has the
// pinned key, one of that process's group, as behind a shell or "go run", or
// (Linux) a descendant of it, as behind a debugger, which makes a group of its
// own. Where nobody can tell which process it is, the secret alone decides.
func (p *instance) vouch(peer *Peer, proves bool) error {
	child := p.pid()
	switch {
	case peer.PID == child, proves && peer.PID <= 0:
		return nil
	case proves && (inGroupOf(peer.PID, child) || descendsFrom(peer.PID, child)) && (peer.process == nil || peer.Valid()): // and the group was not a successor's
		return nil
	case peer.PID <= 0:
		return &Error{Code: PermissionDenied, Message: "the plugin did not get the one-time secret, and the system does not tell which process it is",
			Hint: "what starts the plugin must pass on its stdin, or set Config.Launch.SecretInEnv"}
	case !proves:
		return &Error{Code: PermissionDenied, Message: fmt.Sprintf(
			"process %d serves there, not process %d that was started, and it did not get the one-time secret", peer.PID, child),
			Hint: "what starts the plugin must pass on its stdin, or set Config.Launch.SecretInEnv"}
	}
	return &Error{Code: PermissionDenied, Message: fmt.Sprintf(
		"process %d serves there, which is neither process %d that was started nor of its process group or its descendants", peer.PID, child)}
}

// offer lists the transports that may be used, those that cannot with the
// reason, and makes the directory for the sockets.
func (p *instance) offer() ([]Candidate, error) {
	offer := p.cfg.candidates(thisPlatform())
	if len(offer) == 0 {
		return nil, &Error{Code: Unimplemented, Message: "launching plugins is not supported on " + runtime.GOOS + " by this version"}
	}
	usable := 0
	for i := range offer {
		c := &offer[i]
		_, own := p.cfg.Custom[c.Transport]
		switch {
		case c.Reason != "" || own && c.Transport != "unix":
		case c.Transport == socketpairScheme && p.pair == nil:
			var err error
			if p.pair, p.passed, err = newSocketpair(); err != nil {
				c.Reason = err.Error()
			}
		case c.Transport == "unix" && p.dir == nil:
			var err error
			if p.dir, err = newPrivateDir(p.cfg.Unix.Dir); err != nil {
				c.Reason = "no directory for the socket: " + err.Error()
			}
		}
		if c.Reason == "" {
			usable++
		}
	}
	if usable == 0 {
		return nil, &Error{Code: Unavailable, Message: "no transport can be used: " + (&Selection{Candidates: offer}).line()}
	}
	return offer, nil
}

// awaitLine waits for the launch line.
func (p *instance) awaitLine(ctx context.Context) (*launchLine, error) {
	timer := time.NewTimer(p.cfg.Launch.StartTimeout)
	defer timer.Stop()
	select {
	case r := <-p.proc.stdout.result:
		if r.line == nil && r.err == nil {
			return nil, errNoLaunchLine
		}
		return r.line, r.err
	case <-timer.C:
		return nil, errStartTimeout
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

var errStartTimeout = errors.New("plugwire: no launch line in time")

// check decides whether the plugin that answered with line can be used.
func (o *launchOrder) check(line *launchLine) error {
	if e := line.refusal(); e != nil {
		return e
	}
	if !slices.Contains(o.transports, line.network) {
		return &Error{Code: FailedPrecondition, Message: fmt.Sprintf("the plugin serves on %s, this host allows %q",
			quoted(line.network, maxLaunchSeen), o.transports)}
	}
	if line.app != 0 && len(o.versions) > 0 && !slices.Contains(o.versions, line.app) {
		return &Error{Code: FailedPrecondition, Message: fmt.Sprintf(
			"the plugin speaks version %d of the application's protocol, this host %v", line.app, o.versions)}
	}
	if o.autoTLS(line.network) && !isPin(line.cert) {
		return &Error{Code: FailedPrecondition, Message: "the plugin takes no part in automatic mutual TLS",
			Hint: "its Config.TLS is set, or it is built without TLS; set Config.TLS here too, or Config.Launch.NoAutoMTLS"}
	}
	return nil
}

// failed undoes what start did until the given phase, and returns its error.
func (p *instance) failed(ctx context.Context, phase string, err error) error {
	e := &Error{Code: CodeOf(err), Op: "launch", Addr: p.name, Message: phase, Err: err}
	var saw, status string
	if p.proc != nil {
		p.proc.stdout.abandon()
		exited := p.proc.ended(p.grace(ctx, err))
		p.proc.stdin.Close()
		if (exited || p.proc.kill()) && phase == phaseLine {
			saw = p.redact(p.proc.stdout.scanner.saw())
		}
		if exited {
			status = "it exited with status 0"
			if p.proc.err != nil {
				status = "it ended: " + p.proc.err.Error()
			}
		}
	}
	p.dir.remove()
	if p.pair != nil {
		p.pair.Close()
		p.passed.Close()
	}
	p.explain(e, err, saw)
	if status != "" && (e.Err == nil || e.Err != p.proc.err) {
		e.Message += "; " + status
	}
	known := "" // a plugin that refuses usually prints why on stderr too
	if r := (*launchRefusal)(nil); errors.As(err, &r) {
		known = r.text
	}
	if lines := p.stderrEnd(known); lines != "" {
		e.Message += "; " + lines
	}
	return e
}

// grace is how long a process whose start failed with err may take to end by
// itself, because then its exit status and its stderr say more.
func (p *instance) grace(ctx context.Context, err error) time.Duration {
	var refusal *launchRefusal
	switch {
	case ctx.Err() != nil || err == errStartTimeout:
		return 0
	case errors.As(err, &refusal):
		return refuseGrace
	}
	return exitGrace
}

// explain words the cause of a failed start, which is err, in e. saw says what
// the plugin printed instead of a launch line, when that was what failed.
func (p *instance) explain(e *Error, err error, saw string) {
	var cause *Error
	var refusal *launchRefusal
	switch {
	case errors.As(err, &refusal):
		e.Code, e.Err = refusal.code, nil
		e.Message += ": the plugin refuses: " + refusal.text
	case err == errNoLaunchLine:
		e.Code, e.Hint, e.Err = Unavailable, p.strangerHint(), p.proc.err
		e.Message += ": " + saw
	case err == errStartTimeout:
		e.Code, e.Hint, e.Err = DeadlineExceeded, notPluginHint+"; Config.Launch.StartTimeout sets the time", nil
		e.Message += fmt.Sprintf(": none within %v, %s", p.cfg.Launch.StartTimeout, saw)
	case errors.As(err, &cause) && cause.Op == "":
		e.Code, e.Hint, e.Err = cause.Code, cause.Hint, cause.Err
		if cause.Message != "" {
			e.Message += ": " + cause.Message
		}
	case errors.As(err, &cause):
		e.Code = cause.Code
	case e.Code == Unknown:
		e.Code = Unavailable
	case saw != "":
		e.Message += ", " + saw
	}
}

// strangerHint says what a program that ended without a launch line may be.
func (p *instance) strangerHint() string {
	// go-plugin's plugins say this when they miss their own host's cookie.
	if bytes.Contains(p.proc.stderr.tail, []byte("This binary is a plugin")) {
		return "it seems to be a plugin of hashicorp/go-plugin; " + goPluginHint
	}
	if p.proc.wire != nil {
		return notPluginHint + `; over stdio the command must pass its stdin on, as "docker exec -i" does and "ssh -n" does not`
	}
	return notPluginHint
}

// stderrEnd quotes the last lines of a plugin that ended, without those that say
// what is already known, or returns "".
func (p *instance) stderrEnd(known string) string {
	if p.proc == nil || !p.proc.ended(0) {
		return ""
	}
	if lines := p.proc.lastLines(known); lines != "" {
		return "its stderr ends " + p.redact(lines)
	}
	return ""
}

// redact removes the one-time secret from what a process printed: one that is
// no plugin may well repeat its stdin.
func (p *instance) redact(text string) string {
	if p.secret == nil {
		return text
	}
	return strings.ReplaceAll(text, strings.TrimSpace(p.secret.text()), "[one-time secret]")
}

// watch waits for the process or the connection to end, ends the other, and
// removes what is left. It is the only one that ends the process after the start.
func (p *instance) watch() {
	defer close(p.done)
	select {
	case <-p.conn.Done():
	case <-p.proc.done:
	}
	killed := false
	if !p.proc.ended(0) {
		killed = p.proc.stop()
	}
	// The connection of a process that ended ends by itself, when all that it
	// sent was read.
	if !closedWithin(p.conn.Done(), p.cfg.CloseTimeout) {
		p.conn.Close()
	}
	p.dir.remove()
	p.err = p.ending(killed)
}

// ending is the error of Wait.
func (p *instance) ending(killed bool) error {
	e := &Error{Code: Unavailable, Op: "close", Addr: p.name, Message: "the plugin ended"}
	switch {
	case !p.proc.ended(0):
		e.Message = fmt.Sprintf("the plugin was killed and is still there after %v", killGrace)
		return e
	case killed:
		e.Code = DeadlineExceeded
		e.Message = fmt.Sprintf("the plugin had to be killed: it did not exit within %v of the end of its connection",
			p.cfg.Launch.ExitTimeout)
		e.Hint = "Config.Launch.ExitTimeout sets the time"
		e.Err = unlessGone(p.conn.Err()) // why that has ended
	case p.proc.err == nil:
		return nil
	default:
		e.Err = p.proc.err
	}
	if s := p.stderrEnd(""); s != "" {
		e.Message += "; " + s
	}
	return e
}

// pid returns the process id, also after the end.
func (p *instance) pid() int { return p.proc.pid }

// failure returns why the plugin ended other than it should, or nil. A process
// may exit with status 0 because this side has given its connection up.
func (p *instance) failure() error {
	<-p.done
	if p.err != nil {
		return p.err
	}
	return unlessGone(p.conn.Err())
}
