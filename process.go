package plugwire

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	stderrTail  = 8 << 10 // bytes of the end of stderr that are kept for errors
	stderrLines = 8       // lines of it that an error quotes
	stderrLine  = 300     // bytes of each
)

// The waits that Config has no field for. The first two are part of a start that
// has failed, and end with the process; the last ends at once unless the process
// hangs in the kernel (a dead network file system, say), where no time helps.
const (
	exitGrace   = 100 * time.Millisecond // for a process that seems broken to end by itself and give its reason
	refuseGrace = 2 * time.Second        // for a process that has refused to serve to end by itself
	killGrace   = 5 * time.Second        // for the system to end a killed process, before WaitDelay
)

// process is a plugin's process. Its stdout and stderr are read for as long as
// it lives, so that it never blocks in printing.
type process struct {
	cfg    *LaunchConfig // with defaults
	cmd    *exec.Cmd     // nil when the process was adopted
	os     *os.Process
	pid    int
	stdin  io.Closer  // open while the plugin is wanted: its end tells the plugin to end
	wire   *stdioConn // the connection, where it is stdin and stdout; else nil
	stdout launchOutput
	stderr stderrOutput

	adopted *Attachment // of a process that this one has not started, see reattach.go; else nil

	mu   sync.Mutex // no signal is sent while the process is reaped: its number, and its group's, may be another's afterwards
	over bool       // it was, or is about to be

	done chan struct{} // closed by run, when the process has ended and its output was read
	err  error         // of Wait; read after done, as is the output
	held bool          // the output was still open then
}

// startProcess starts a copy of the template with what the host tells it.
func startProcess(template *exec.Cmd, order *launchOrder, cfg *Config) (*process, error) {
	p := &process{cfg: &cfg.Launch, done: make(chan struct{})}
	p.stdout.result = make(chan launchResult, 1)
	p.stderr.copy = template.Stderr
	p.stdout.log, p.stderr.log = outputLogs(template, cfg, order.secret)
	p.cmd = &exec.Cmd{
		Path:        template.Path,
		Args:        template.Args,
		Dir:         template.Dir,
		ExtraFiles:  template.ExtraFiles,
		SysProcAttr: template.SysProcAttr,
		Err:         template.Err,
		Stdout:      &p.stdout,
		Stderr:      &p.stderr,
		WaitDelay:   cfg.Launch.WaitDelay,
	}
	if order.passed != nil {
		p.cmd.ExtraFiles = append(slices.Clip(p.cmd.ExtraFiles), order.passed)
		order.fd = 2 + len(p.cmd.ExtraFiles)
	}
	order.host, order.ownGroup, order.deathSignal = os.Getpid(), ownGroup(p.cmd), order.detach <= 0 && dieWithParent(p.cmd)
	p.cmd.Env = append(launchEnviron(template, p.cfg), launchVar+"="+order.String())
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	p.stdin = stdin
	if order.overStdio() {
		if p.wire, err = hostStdio(stdin, &p.stdout); err != nil {
			return nil, err
		}
		p.stdin = p.wire
	}
	started := make(chan error, 1)
	go p.run(started)
	if err := <-started; err != nil {
		return nil, err // the pipes are closed
	}
	switch { // what is written fits the pipe; a process that has ended is noticed below
	case order.overStdio():
		io.WriteString(stdin, launchVar+"="+order.forStdin()+"\n")
	case order.secretStdin:
		io.WriteString(stdin, order.secret.text())
	}
	p.forwardSignals()
	return p, nil
}

// run starts the process, and reaps it when it has ended. It keeps the thread for
// all that time: the kernel ends the process with the thread that started it,
// and the runtime may end any thread that is not locked. It costs nothing, since
// waiting blocks a thread anyway.
func (p *process) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := startVerified(p.cmd, p.cfg.SHA256)
	if err == nil {
		p.os, p.pid = p.cmd.Process, p.cmd.Process.Pid
		err = joinGroup(p.cmd, p.cfg.Detach > 0)
	}
	if err == nil {
		p.stdout.log.start(p.os.Pid)
		p.stderr.log.start(p.os.Pid)
	}
	started <- err
	if err == nil {
		p.wait()
	}
}

// wait reaps the process, and ends what it has left in its group.
func (p *process) wait() {
	// While the process is not reaped, the number of its group is nobody else's.
	// Where one cannot wait for the end without reaping, the group is signalled
	// right after: the system does not give its number away as long as the group
	// has a member, and to hit a stranger it would have to give away that of an
	// empty one meanwhile.
	if awaitExit(p.os) {
		p.signal(syscall.SIGKILL)
		p.reap()
		endGroup(p.cmd) // some systems do not tell the group of a process that has ended
		p.err = p.cmd.Wait()
	} else {
		p.err = p.cmd.Wait()
		p.reap()
		endGroup(p.cmd)
	}
	if errors.Is(p.err, exec.ErrWaitDelay) {
		p.err, p.held = nil, true // it ended well, and left its output open to a process of its own
	}
	p.stdout.end()
	p.stderr.end()
	close(p.done)
}

// signal sends a signal to the process and its group.
func (p *process) signal(sig sysSignal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.over:
	case p.adopted != nil:
		signalIf(p.os, func() bool { return p.adoptedState() == adoptedRuns }, sig)
	default:
		signalGroup(p.os, sig)
	}
}

// reap has no signal sent any more.
func (p *process) reap() {
	p.mu.Lock()
	p.over = true
	p.mu.Unlock()
}

// forwardSignals begins to pass on the signals that are to be.
func (p *process) forwardSignals() {
	if len(p.cfg.ForwardSignals) > 0 {
		forwarded := make(chan os.Signal, 8)
		signal.Notify(forwarded, p.cfg.ForwardSignals...)
		go p.forward(forwarded)
	}
}

// forward passes signals on that this process gets, as long as the process is there.
func (p *process) forward(signals chan os.Signal) {
	defer signal.Stop(signals)
	for {
		select {
		case s := <-signals:
			if s, ok := s.(sysSignal); ok {
				p.signal(s)
			}
		case <-p.done:
			return
		}
	}
}

// ended waits for at most d for the process to end.
func (p *process) ended(d time.Duration) bool { return closedWithin(p.done, d) }

// kill ends the process, and its group, at once.
func (p *process) kill() bool {
	p.signal(syscall.SIGKILL)
	return p.ended(killGrace + p.cfg.WaitDelay)
}

// stop ends the process: by the end of its stdin at once, by SIGTERM (on Windows
// Ctrl-Break) after TermTimeout, by killing it after ExitTimeout. It reports
// whether that was needed.
func (p *process) stop() (killed bool) {
	p.stdin.Close()
	if p.ended(p.cfg.TermTimeout) {
		return false
	}
	p.signal(syscall.SIGTERM)
	if p.ended(p.cfg.ExitTimeout - p.cfg.TermTimeout) {
		return false
	}
	p.kill()
	return true
}

// lastLines returns the end of stderr as a list of quoted lines, or "": those
// from the headline of a crash on, or else the last. Lines that say what is
// already known are left out. Call it when the process has ended.
func (p *process) lastLines(known string) string {
	var last []string
	crash := -1
	for line := range strings.Lines(string(p.stderr.tail)) {
		line = strings.TrimSpace(line)
		if line == "" || known != "" && strings.Contains(line, known) {
			continue
		}
		if crash < 0 && (strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ")) {
			crash = len(last)
		}
		last = append(last, quoted(line, stderrLine))
	}
	if crash >= 0 {
		return strings.Join(last[crash:min(len(last), crash+stderrLines)], ", ")
	}
	return strings.Join(last[max(0, len(last)-stderrLines):], ", ")
}

// closedWithin waits for at most d for the channel to be closed.
func closedWithin(c <-chan struct{}, d time.Duration) bool {
	select {
	case <-c:
		return true
	default:
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-c:
		return true
	case <-timer.C:
		return false
	}
}
