package plugwire

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// Supervision: what happens between the processes of a Plugin.

// RestartPolicy says when a plugin that ended is started again.
type RestartPolicy int

const (
	NeverRestart     RestartPolicy = iota // the plugin is over when its process is
	RestartOnFailure                      // unless it exited with status 0, as it does when it is asked to end
	RestartAlways                         // until Close or Shutdown
)

// EventKind says what has happened to a plugin.
type EventKind int

const (
	EventStarting   EventKind = iota // a process is about to be started
	EventReady                       // it can be called
	EventUnhealthy                   // its health method has failed; the process is ended
	EventExited                      // the process and its connection are gone; Err is how, with the last lines of its stderr
	EventStartError                  // a start failed; Err is why
	EventRestarting                  // another start follows after Wait
	EventGivenUp                     // none follows: the limit of restarts is reached; Err is the last reason
)

var eventNames = [...]string{"starting", "ready", "unhealthy", "exited", "start failed", "restarting", "given up"}

// String returns the kind in words.
func (k EventKind) String() string {
	if k < 0 || int(k) >= len(eventNames) {
		return fmt.Sprintf("EventKind(%d)", int(k))
	}
	return eventNames[k]
}

// Event is something that has happened to a plugin. See Config.Launch.OnEvent.
type Event struct {
	Kind EventKind
	Name string        // the command
	Pid  int           // of the process concerned, or 0
	Err  error         // why, or nil
	Wait time.Duration // EventRestarting: how long until then
}

// event reports an event to the callback and to the log.
func (p *Plugin) event(e Event) {
	p.telling.Lock()
	defer p.telling.Unlock()
	if f := p.cfg.Launch.OnEvent; f != nil {
		f(e)
	}
	if p.cfg.Logger == nil {
		return
	}
	// The handler of a Logger may block, and must not hold up a plugin.
	p.logMu.Lock()
	defer p.logMu.Unlock()
	if len(p.unlogged) >= maxUnlogged {
		return
	}
	p.unlogged = append(p.unlogged, e)
	if p.logged == nil {
		p.logged = make(chan struct{})
		go p.logEvents()
	}
}

const (
	maxUnlogged = 100                    // events that wait for a Logger; more are dropped
	logGrace    = 100 * time.Millisecond // for the last of them, when a Plugin ends
)

// logEvents logs events until there are no more for now.
func (p *Plugin) logEvents() {
	for {
		p.logMu.Lock()
		if len(p.unlogged) == 0 {
			close(p.logged)
			p.logged = nil
			p.logMu.Unlock()
			return
		}
		e := p.unlogged[0]
		p.unlogged = p.unlogged[1:]
		p.logMu.Unlock()
		e.log(p.cfg.Logger)
	}
}

// awaitLog waits, but not for long, until what has happened is logged.
func (p *Plugin) awaitLog() {
	p.logMu.Lock()
	logged := p.logged
	p.logMu.Unlock()
	if logged != nil {
		closedWithin(logged, logGrace)
	}
}

// log writes the event as a record.
func (e *Event) log(log *slog.Logger) {
	level := slog.LevelInfo
	switch {
	case e.Kind == EventGivenUp:
		level = slog.LevelError
	case e.Err != nil:
		level = slog.LevelWarn
	}
	attrs := []slog.Attr{slog.String("plugin", filepath.Base(e.Name))}
	if e.Pid != 0 {
		attrs = append(attrs, slog.Int("pid", e.Pid))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.Any("err", e.Err))
	}
	if e.Wait != 0 {
		attrs = append(attrs, slog.Duration("wait", e.Wait))
	}
	log.LogAttrs(context.Background(), level, "plugwire: plugin "+e.Kind.String(), attrs...)
}

// first makes the first start, and as many more as are allowed.
func (p *Plugin) first(ctx context.Context) (*instance, error) {
	for n := 0; ; n++ {
		inst, err := p.startOne(ctx, p.template)
		if err == nil || n >= p.cfg.Launch.StartRetries || ctx.Err() != nil {
			return inst, err
		}
		wait := p.delay(n)
		p.event(Event{Kind: EventRestarting, Name: commandName(p.template), Wait: wait})
		if !sleep(ctx, wait) {
			return nil, err
		}
	}
}

// startOne starts one instance, and says so.
func (p *Plugin) startOne(ctx context.Context, cmd *exec.Cmd) (*instance, error) {
	name := commandName(cmd)
	p.event(Event{Kind: EventStarting, Name: name})
	inst, err := startInstance(ctx, cmd, p.given)
	if err != nil {
		p.event(Event{Kind: EventStartError, Name: name, Err: err})
		return nil, err
	}
	p.started(inst)
	return inst, nil
}

// started is for an instance that can be called.
func (p *Plugin) started(inst *instance) {
	p.mu.Lock()
	p.live[inst] = struct{}{}
	p.mu.Unlock()
	p.event(Event{Kind: EventReady, Name: inst.name, Pid: inst.pid()})
	go p.attend(inst)
}

// attend looks after one instance until it has ended: it asks for its health, and
// reports its end.
func (p *Plugin) attend(inst *instance) {
	if p.cfg.Launch.HealthMethod != "" {
		p.checkHealth(inst)
	}
	<-inst.conn.Done()
	if err := inst.conn.Err(); errors.Is(err, errSilent) {
		p.event(Event{Kind: EventUnhealthy, Name: inst.name, Pid: inst.pid(), Err: err})
	}
	<-inst.done
	err := inst.failure()
	if err == nil && inst.proc.held {
		err = &Error{Code: Unknown, Op: "close", Addr: inst.name, Message: "it exited with status 0, but something that it has started still holds its output open"}
	}
	p.event(Event{Kind: EventExited, Name: inst.name, Pid: inst.pid(), Err: err})
	p.mu.Lock()
	delete(p.live, inst)
	p.mu.Unlock()
	close(inst.reported)
}

// checkHealth calls the health method until the connection ends, and ends it when
// the method fails too often.
func (p *Plugin) checkHealth(inst *instance) {
	l := &p.cfg.Launch
	tick := time.NewTicker(l.HealthInterval)
	defer tick.Stop()
	failures := 0
	for {
		select {
		case <-inst.conn.Done():
			return
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(context.Background(), l.HealthInterval)
		_, err := inst.conn.Call(ctx, l.HealthMethod, nil)
		cancel()
		if err == nil {
			failures = 0
			continue
		}
		if failures++; failures >= l.HealthThreshold && !inst.conn.ended.Load() {
			p.event(Event{Kind: EventUnhealthy, Name: inst.name, Pid: inst.pid(), Err: err})
			inst.conn.fail(&Error{Code: Unavailable, Op: "call", Addr: l.HealthMethod, Err: err,
				Message: fmt.Sprintf("the plugin is not healthy: its health method failed %d times", failures)})
			return
		}
	}
}

// supervise waits for the instance that calls go to, starts another in its place
// as long as that is wanted, and ends the Plugin otherwise.
func (p *Plugin) supervise() {
	var starts []time.Time // restarts within the window
	for {
		inst, changed := p.now()
		select {
		case <-changed:
			continue
		case <-inst.reported:
		}
		err := inst.failure()
		if p.wanted(err) {
			next, serr := p.restart(inst, &starts, err)
			if next != nil {
				continue
			}
			if serr != nil && p.end(inst, serr) {
				return
			}
			if serr != nil {
				continue
			}
		}
		if p.end(inst, inst.err) {
			return
		}
	}
}

// wanted reports whether a plugin that ended with err is to be started again.
func (p *Plugin) wanted(err error) bool {
	switch {
	case p.closing.Err() != nil, p.current() == nil:
		return false
	case p.cfg.Launch.Restart == RestartOnFailure:
		return err != nil
	}
	return p.cfg.Launch.Restart == RestartAlways
}

// restart starts an instance in the place of dead, after as many attempts as it
// takes. It returns nil and nil when that is no longer wanted, because of Close
// or because Swap has put another there.
func (p *Plugin) restart(dead *instance, starts *[]time.Time, why error) (*instance, error) {
	l := &p.cfg.Launch
	for {
		now := time.Now()
		*starts = slices.DeleteFunc(*starts, func(t time.Time) bool { return now.Sub(t) > l.RestartWindow })
		if len(*starts) >= l.MaxRestarts {
			err := &Error{Code: Unavailable, Op: "launch", Addr: dead.name, Err: why,
				Message: fmt.Sprintf("given up after %d restarts within %v", len(*starts), l.RestartWindow),
				Hint:    "Config.Launch.MaxRestarts and RestartWindow set the limit"}
			p.event(Event{Kind: EventGivenUp, Name: dead.name, Err: err})
			return nil, err
		}
		wait := p.delay(len(*starts))
		*starts = append(*starts, now)
		p.event(Event{Kind: EventRestarting, Name: dead.name, Wait: wait})
		if !p.pause(dead, wait) {
			return nil, nil
		}
		next, err := p.startOne(p.closing, p.current())
		switch {
		case err != nil && p.closing.Err() != nil:
			return nil, nil
		case err != nil:
			why = err
			continue
		}
		p.cfg.metrics.count(next.conn.peer.Transport, func(t *TransportStats) { t.Restarts++ })
		switch {
		case !p.become(dead, next): // Swap was faster
			next.conn.Close()
			return nil, nil
		case p.closing.Err() != nil: // and Close has not seen it
			next.conn.Close()
		}
		return next, nil
	}
}

// delay is how long to wait before the next start, after n within the window:
// doubled each time, give or take a fifth, so that plugins that failed together
// do not start together.
func (p *Plugin) delay(n int) time.Duration {
	l := &p.cfg.Launch
	d := min(l.RestartDelay<<min(n, 20), l.RestartDelayMax)
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

// pause waits before a restart; false means that dead is no longer to be replaced.
func (p *Plugin) pause(dead *instance, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		now, changed := p.now()
		if now != dead {
			return false
		}
		select {
		case <-timer.C:
			return true
		case <-changed:
		case <-p.closing.Done():
			return false
		}
	}
}

// sleep waits for d; false means that ctx has ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// end ends the Plugin for good, unless Swap has put another instance in the place
// of the last.
func (p *Plugin) end(last *instance, err error) bool {
	p.mu.Lock()
	if p.over = p.cur.Load() == last; !p.over {
		p.mu.Unlock()
		return false
	}
	p.mu.Unlock()
	p.lastErr = err
	for _, inst := range p.others(last) { // versions that Swap has replaced
		select {
		case <-inst.reported:
		case <-p.closing.Done():
			inst.conn.Close()
			<-inst.reported
		}
	}
	p.stop()
	p.awaitLog()
	p.unregister()
	close(p.done)
	return true
}

// others returns the instances that have not ended, except one.
func (p *Plugin) others(than *instance) (left []*instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for inst := range p.live {
		if inst != than {
			left = append(left, inst)
		}
	}
	return left
}

// now returns the instance that calls go to, and what is closed when it changes.
func (p *Plugin) now() (*instance, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cur.Load(), p.changed
}

// The calls. An attempt that failed without having run, on an instance that has
// ended or is being replaced, is made again on the next one.

// Call sends a request and waits for its reply, as Conn.Call does.
func (p *Plugin) Call(ctx context.Context, method string, req []byte) ([]byte, error) {
	c := Call{Method: method, Request: req}
	if err := p.Do(ctx, &c); err != nil {
		return nil, err
	}
	return c.Reply, nil
}

// Do makes one call, as Conn.Do does.
func (p *Plugin) Do(ctx context.Context, c *Call) error {
	var wait waitForNext
	reply := len(c.Reply)
	for inst := p.cur.Load(); ; {
		err := inst.conn.Do(ctx, c)
		if err == nil || !p.again(ctx, &inst, &wait, &err, c.Idempotent) {
			return err
		}
		c.Reply = c.Reply[:reply]
	}
}

// DoAll makes many calls at once, as Conn.DoAll does.
func (p *Plugin) DoAll(ctx context.Context, calls []*Call) error {
	var wait waitForNext
	replies := make([]int, len(calls))
	for i, c := range calls {
		replies[i] = len(c.Reply)
	}
	inst := p.cur.Load()
	err := inst.conn.DoAll(ctx, calls)
	for err != nil {
		var left []*Call
		for i, c := range calls {
			if c.Err != nil && p.mayRunAgain(c.Err, c.Idempotent, inst) {
				c.Reply = c.Reply[:replies[i]]
				left = append(left, c)
			}
		}
		last := error(&Error{Code: Unavailable, notRun: true})
		if len(left) == 0 || !p.again(ctx, &inst, &wait, &last, true) {
			return err
		}
		inst.conn.DoAll(ctx, left)
		err = nil
		if i := slices.IndexFunc(calls, func(c *Call) bool { return c.Err != nil }); i >= 0 {
			err = calls[i].Err
		}
	}
	return err
}

// Notify sends a one-way message, as Conn.Notify does. Messages that an ended
// process had accepted and not handled are lost with it.
func (p *Plugin) Notify(ctx context.Context, method string, msg []byte) error {
	var wait waitForNext
	for inst := p.cur.Load(); ; {
		err := inst.conn.Notify(ctx, method, msg)
		if err == nil || !p.again(ctx, &inst, &wait, &err, false) {
			return err
		}
	}
}

// OpenStream opens a stream, as Conn.OpenStream does. It ends with the process.
func (p *Plugin) OpenStream(ctx context.Context, method string) (*Stream, error) {
	var wait waitForNext
	for inst := p.cur.Load(); ; {
		s, err := inst.conn.OpenStream(ctx, method)
		if err == nil || !p.again(ctx, &inst, &wait, &err, false) {
			return s, err
		}
	}
}

// waitForNext is how long one call may still wait for instances.
type waitForNext struct{ until time.Time }

// mayRunAgain reports whether a call that failed with err on inst may be made on
// another instance: inst is at its end, and the call cannot have run or does no
// harm when it runs twice.
func (p *Plugin) mayRunAgain(err error, idempotent bool, inst *instance) bool {
	if CodeOf(err) != Unavailable || !idempotent && !NotRun(err) {
		return false
	}
	return p.cur.Load() != inst || inst.conn.isEnding()
}

// again decides, after *err on *inst, whether to try once more, and on which
// instance, for which it waits. When that takes too long, *err says so.
func (p *Plugin) again(ctx context.Context, inst **instance, wait *waitForNext, err *error, idempotent bool) bool {
	if !p.mayRunAgain(*err, idempotent, *inst) {
		return false
	}
	if wait.until.IsZero() {
		wait.until = time.Now().Add(p.cfg.Launch.RestartWait)
	}
	timer := time.NewTimer(time.Until(wait.until))
	defer timer.Stop()
	for {
		now, changed := p.now()
		if now != *inst {
			*inst = now
			return true
		}
		if p.cfg.Launch.Restart == NeverRestart {
			return false
		}
		select {
		case <-changed:
		case <-p.done:
			*err = &Error{Code: Unavailable, Op: "call", Addr: (*inst).name, Message: "the plugin has ended", Err: p.lastErr, notRun: NotRun(*err)}
			return false
		case <-ctx.Done():
			*err = callError(ctx.Err(), (*inst).name, NotRun(*err))
			return false
		case <-timer.C:
			*err = &Error{Code: Unavailable, Op: "call", Addr: (*inst).name, Err: *err, notRun: NotRun(*err),
				Message: fmt.Sprintf("no process of the plugin was ready within %v", p.cfg.Launch.RestartWait),
				Hint:    "Config.Launch.RestartWait sets the time"}
			return false
		}
	}
}

// isEnding reports that nothing new may be opened on c.
func (c *Conn) isEnding() bool {
	c.out.Lock()
	defer c.out.Unlock()
	return c.life.refuses
}
