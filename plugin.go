package plugwire

import (
	"context"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
)

// Plugin is a plugin that Launch started: a process, the connection to it, and,
// where Config.Launch.Restart asks for that, the processes that take its place
// when it ends. Its methods may be called concurrently.
//
// While no process runs, because one ended and the next is not ready, calls wait
// for it, for at most Config.Launch.RestartWait. Calls that were in flight when
// the process ended fail at once; NotRun says whether they can have run. Those
// that cannot, and those with Call.Idempotent, are made again on the next.
type Plugin struct {
	given *Config // by the caller, for each start
	cfg   *Config // with defaults

	cur      atomic.Pointer[instance] // the one that calls go to; it may have ended
	mu       sync.Mutex
	template *exec.Cmd
	changed  chan struct{}          // closed and replaced when cur changes
	over     bool                   // no process runs or will
	live     map[*instance]struct{} // those that have not ended

	swapping sync.Mutex // held while Swap starts an instance
	telling  sync.Mutex // held while an event is reported

	logMu    sync.Mutex
	unlogged []Event       // that the Logger is still to get
	logged   chan struct{} // closed when it has; nil: there are none

	closing context.Context // of starts, and of waits for them; ends with the first Close
	stop    context.CancelFunc

	done    chan struct{} // closed by supervise when the Plugin has ended
	lastErr error         // of Wait; read after done
}

// Launch starts a plugin as cmd says, connects to it and returns when it can be
// called. The plugin is a program that calls ServePlugin.
//
// cmd is a template: its Path, Args, Env, Dir, Stderr, ExtraFiles and
// SysProcAttr are copied for each start and it is not changed, so that it can
// serve again. A nil Env means that of this process. Its Stderr, when set, gets a
// copy of the plugin's; a Stderr that blocks blocks the plugin. A cmd that was
// started, has Stdin or Stdout set, or comes from exec.CommandContext is refused.
//
// ctx bounds the start only: when it ends during the start, the process is
// killed and Launch returns at once; afterwards it means nothing. Each attempt to
// start is also bounded by Config.Launch.StartTimeout, DialTimeout and
// HandshakeTimeout; Config.Launch.StartRetries allows more than one.
//
// The error is an *Error with Op "launch" that names the phase that failed, the
// command, how the process ended, and the last lines of its stderr. After an
// error no process, socket or directory is left. The caller must Close the Plugin.
func Launch(ctx context.Context, cmd *exec.Cmd, cfg *Config) (*Plugin, error) {
	if err := checkTemplate(cmd); err != nil {
		return nil, err
	}
	p := newPlugin(cmd, cfg)
	inst, err := p.first(ctx)
	if err != nil {
		p.stop()
		p.awaitLog()
		return nil, err
	}
	p.run(inst)
	return p, nil
}

func newPlugin(cmd *exec.Cmd, cfg *Config) *Plugin {
	given := cfg.counted()
	p := &Plugin{given: given, cfg: given.withDefaults(), template: cmd, live: make(map[*instance]struct{}),
		changed: make(chan struct{}), done: make(chan struct{})}
	p.closing, p.stop = context.WithCancel(context.Background())
	return p
}

// run looks after the Plugin from its first instance on.
func (p *Plugin) run(inst *instance) {
	p.become(nil, inst)
	p.register()
	go p.supervise()
}

// become has calls go to the instance next if they go to old now.
func (p *Plugin) become(old, next *instance) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over || !p.cur.CompareAndSwap(old, next) {
		return false
	}
	close(p.changed)
	p.changed = make(chan struct{})
	return true
}

// Conn returns the connection to the process that runs, or that ran last: after a
// restart or a Swap it is another.
func (p *Plugin) Conn() *Conn { return p.cur.Load().conn }

// Pid returns the process id of the plugin, or of the last process that ran.
func (p *Plugin) Pid() int { return p.cur.Load().pid() }

// Stats returns the counters of all connections that it has had.
func (p *Plugin) Stats() Stats {
	return p.cfg.metrics.stats()
}

// Selection says which transport was chosen, and why. The caller owns it.
func (p *Plugin) Selection() *Selection {
	s := *p.cur.Load().selection
	s.Candidates = slices.Clone(s.Candidates)
	return &s
}

// Wait waits until the plugin has ended for good, and everything of it is gone:
// process, connection, socket and directory. It returns nil when the process
// exited with status 0, and else an *Error that says how it ended, with the last
// lines of its stderr; errors.As finds the *exec.ExitError in it. Of a plugin
// that was restarted it is how the last process ended, or that it was given up.
func (p *Plugin) Wait() error {
	<-p.done
	return p.lastErr
}

// Shutdown ends the plugin when the calls in flight have ended, and then returns
// as Close does. When ctx ends first, what is left of them ends with an error, and
// Shutdown returns ctx's error without waiting for the process, as Close and Wait do.
func (p *Plugin) Shutdown(ctx context.Context) error {
	p.stop()
	last := p.settled()
	var wg sync.WaitGroup
	for _, inst := range p.others(last) {
		wg.Go(func() { inst.conn.Shutdown(ctx) })
	}
	err := last.conn.Shutdown(ctx)
	wg.Wait()
	if err != nil && ctx.Err() != nil {
		return err
	}
	if cerr := p.Close(); cerr != nil {
		return cerr
	}
	return err
}

// Close ends the plugin. It closes the connection as Conn.Close does: what was
// accepted is sent, pending calls end with an error. That asks the plugin to
// exit; one that has not after Config.Launch.TermTimeout gets SIGTERM, after
// ExitTimeout it is killed, and in either case what is left of its process group
// with it. Close returns, as Wait does, how the plugin ended: also when that was
// before. It may be called again.
func (p *Plugin) Close() error {
	p.stop()
	last := p.settled()
	for _, inst := range p.others(last) {
		go inst.conn.Close()
	}
	err := last.conn.Close()
	if werr := p.Wait(); werr != nil {
		return werr
	}
	return err
}

// settled returns the instance that is the last, after stop: one that is just
// being started is not to be overlooked.
func (p *Plugin) settled() *instance {
	p.swapping.Lock()
	defer p.swapping.Unlock()
	return p.cur.Load()
}

// Swap starts a new version of the plugin beside the running one, as cmd says
// (nil: as the last command, again), has new calls go to it, and ends the old
// one when the calls in flight there have ended: no call fails, and none runs
// twice. Restarts use the new command from then on. ctx bounds both the start and
// the end of the old version, which is closed when ctx ends first. When the
// new version does not start, the old one stays and the error says why.
//
// Connections of the old version are not moved: streams that are open go on
// until ctx ends. Conn, Pid and Selection are those of the new version.
func (p *Plugin) Swap(ctx context.Context, cmd *exec.Cmd) error {
	if cmd == nil {
		cmd = p.current()
	}
	if err := checkTemplate(cmd); err != nil {
		return err
	}
	old, err := p.swap(ctx, cmd)
	if err != nil {
		return err
	}
	err = old.conn.Shutdown(ctx)
	<-old.done
	if ctx.Err() == nil {
		return nil // how the old version ended is in its event
	}
	return err
}

// swap is Swap without the old version's end. It returns that version.
func (p *Plugin) swap(ctx context.Context, cmd *exec.Cmd) (old *instance, err error) {
	p.swapping.Lock()
	defer p.swapping.Unlock()
	if p.closing.Err() != nil {
		return nil, errPluginEnded
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.closing, cancel)()
	next, err := p.startOne(ctx, cmd)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.template = cmd
	p.mu.Unlock()
	for p.closing.Err() == nil {
		if old = p.cur.Load(); p.become(old, next) {
			return old, nil
		}
	}
	next.conn.Close()
	<-next.done
	return nil, errPluginEnded
}

var errPluginEnded = &Error{Code: FailedPrecondition, Op: "launch", Message: "the plugin has ended"}

// current returns the command for the next start.
func (p *Plugin) current() *exec.Cmd {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.template
}
