package plugwire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"
)

// Attachment is what a host needs to find a plugin again that has outlived the
// one that launched it, and to be accepted by it. It can be stored, for instance
// as JSON: whoever can read it can take over the plugin, so nobody else may.
// Printed and logged it shows no secrets.
type Attachment struct {
	Address string // where the plugin listens
	Pid     int    // the process that was launched
	Started string // when that was, as the system has it: another process of the same number differs in it; "" where the system does not tell
	Secret  string `json:",omitempty"` // of the launch
	Key     []byte `json:",omitempty"` // for automatic mutual TLS: this side's (PKCS #8)
	Pin     string `json:",omitempty"` // and whose key the plugin has
}

// String leaves out the secrets.
func (a Attachment) String() string { return fmt.Sprintf("process %d at %s", a.Pid, a.Address) }

// GoString leaves out the secrets.
func (a Attachment) GoString() string { return fmt.Sprintf("plugwire.Attachment{%v}", a) }

// LogValue leaves out the secrets.
func (a Attachment) LogValue() slog.Value { return slog.StringValue(a.String()) }

// Attachment returns what Reattach needs, in another process and after the end of
// this one, for a plugin that was launched with Config.Launch.Detach. It is that
// of the process that runs now: a restart and Swap make it worthless.
func (p *Plugin) Attachment() (Attachment, error) {
	inst := p.cur.Load()
	e := &Error{Code: FailedPrecondition, Op: "launch", Addr: inst.name}
	switch a := inst.attachment; {
	case a.Address == "":
		e.Message, e.Hint = "the plugin ends with its host", "Config.Launch.Detach has it live on"
	case a.Secret == "" && a.Pin == "":
		e.Message = "the plugin did not get the one-time secret, and knows its host by being its child"
		e.Hint = "what starts the plugin must pass on its stdin, or set Config.Launch.SecretInEnv"
	default:
		return a, nil
	}
	return Attachment{}, e
}

// Reattach connects to a plugin that was launched by a host that is gone, before
// Config.Launch.Detach has passed. cfg is as for Launch; where TLS was configured
// it must be again. ctx bounds the connecting only.
//
// The Plugin is like one of Launch, but what the plugin prints is lost, Wait
// cannot tell an exit status, and with no command to start again it is not restarted
// until Swap has given one. Its process is ended by Close as elsewhere, but only
// where the system tells when it started: no signal is sent to a process that may
// be another's. The error has the code NotFound when the process is gone, and
// FailedPrecondition when the plugin has a host.
func Reattach(ctx context.Context, a Attachment, cfg *Config) (*Plugin, error) {
	p := newPlugin(nil, cfg)
	inst, err := reattach(ctx, a, p.given)
	if err != nil {
		p.stop()
		return nil, err
	}
	p.started(inst)
	p.run(inst)
	return p, nil
}

// reattach makes an instance of a plugin that runs.
func reattach(ctx context.Context, a Attachment, cfg *Config) (*instance, error) {
	cfg = cfg.inRole(asDialler)
	p := newInstance(a.String(), cfg)
	p.attachment = a
	scheme, _, _ := strings.Cut(a.Address, ":")
	p.selection = &Selection{Chosen: scheme, Candidates: []Candidate{{Transport: scheme, Reason: "chosen: the running plugin listens there"}}}
	fail := func(err error) (*instance, error) {
		if p.proc != nil {
			p.proc.os.Release()
		}
		return nil, setupError("launch", a.Address, err)
	}
	var dialled Config
	if cfg != nil {
		dialled = *cfg
	}
	var err error
	if a.Secret != "" {
		if p.secret, err = parseSecret(a.Secret + "\n"); err != nil {
			return fail(&Error{Code: InvalidArgument, Message: "the Attachment's Secret is none"})
		}
		dialled.secret = p.secret
	}
	if a.Pin != "" && !p.cfg.hasTLS() {
		if dialled.TLS, err = autoTLSOf("plugwire host", a.Key); err != nil {
			return fail(&Error{Code: InvalidArgument, Message: "the Attachment's Key is none", Err: err})
		}
		dialled.TLS.pin = a.Pin
	}
	if dialled.KeepAlive == 0 {
		dialled.KeepAlive = defaultKeepAlive
	}
	if p.proc, err = adoptProcess(a, p.cfg); err != nil {
		return fail(err)
	}
	dialled.vouch = func(peer *Peer) error { return p.vouch(peer, dialled.secret != nil || dialled.TLS.pin != "") }
	if p.conn, err = Dial(ctx, a.Address, &dialled); err != nil {
		return fail(err)
	}
	if _, err := p.conn.Ping(ctx); err != nil { // it has said by now if it has a host
		p.conn.Close()
		if errors.Is(err, io.EOF) { // it had none when the handshake began
			err = &Error{Code: FailedPrecondition, Message: "this plugin has a host", Err: err}
		}
		return fail(err)
	}
	p.dir = adoptPrivateDir(a.Address)
	p.proc.forwardSignals()
	go p.proc.awaitAdopted(p.conn.Done())
	go p.watch()
	return p, nil
}

// adoptProcess finds a process that this one has not started.
func adoptProcess(a Attachment, cfg *Config) (*process, error) {
	gone := &Error{Code: NotFound, Message: fmt.Sprintf("process %d, the plugin, is gone", a.Pid)}
	if a.Pid <= 0 {
		return nil, &Error{Code: InvalidArgument, Message: "the Attachment has no Pid"}
	}
	handle, err := os.FindProcess(a.Pid)
	if err != nil {
		gone.Err = err
		return nil, gone
	}
	p := &process{cfg: &cfg.Launch, os: handle, pid: a.Pid, adopted: &a, stdin: nopCloser{}, done: make(chan struct{})}
	if p.adoptedState() == adoptedGone { // asked when there is a handle, which stays that process's where there are such
		handle.Release()
		return nil, gone
	}
	return p, nil
}

// What is known of an adopted process.
const (
	adoptedUnknown = iota // nothing: no signal is sent
	adoptedRuns
	adoptedGone
)

func (p *process) adoptedState() int {
	if p.adopted.Started == "" {
		return adoptedUnknown
	}
	started, err := startedAt(p.pid)
	switch {
	case errors.Is(err, os.ErrProcessDone), err == nil && started != p.adopted.Started:
		return adoptedGone
	case err != nil: // it could not be looked at
		return adoptedUnknown
	}
	return adoptedRuns
}

// adoptedPoll is how often an adopted process is looked at, once its connection
// has ended. Nobody is told of its end.
const adoptedPoll = 5 * time.Millisecond

// awaitAdopted waits for the end of an adopted process: its connection ends first.
func (p *process) awaitAdopted(conn <-chan struct{}) {
	<-conn
	if p.adopted.Started != "" {
		for p.adoptedState() != adoptedGone {
			time.Sleep(adoptedPoll)
		}
	}
	p.reap()
	p.os.Release()
	close(p.done)
}

type nopCloser struct{}

func (nopCloser) Close() error { return nil }
