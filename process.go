package plugwire

import (
	"errors"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	stderrTail  = 8 << 10                // bytes of the end of stderr that are kept for errors
	stderrLines = 8                      // lines of it that an error quotes
	stderrLine  = 300                    // bytes of each
	pipeGrace   = 500 * time.Millisecond // for output still in the pipes when the process has ended; a grandchild may hold them open
	exitGrace   = 100 * time.Millisecond // for a process that seems broken to end by itself and give its reason
	refuseGrace = 2 * time.Second        // for a process that has refused to serve to end by itself
	killGrace   = 5 * time.Second        // for the system to end a killed process
)

// process is a plugin's process. Its stdout and stderr are read for as long as
// it lives, so that it never blocks in printing.
type process struct {
	cmd    *exec.Cmd
	stdin  io.Closer // open while the plugin is wanted: its end tells the plugin that the host is gone
	stdout launchOutput
	stderr stderrOutput

	done chan struct{} // closed by wait, when the process has ended and its output was read
	err  error         // of Wait; read after done, as is the output
}

// startProcess starts a copy of the template with what the host tells it.
func startProcess(template *exec.Cmd, order *launchOrder, cfg *Config) (*process, error) {
	p := &process{done: make(chan struct{})}
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
		Env:         append(launchEnviron(template, &cfg.Launch), launchVar+"="+order.String()),
		Stdout:      &p.stdout,
		Stderr:      &p.stderr,
		WaitDelay:   pipeGrace,
	}
	ownGroup(p.cmd)
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	p.stdin = stdin
	if err := startVerified(p.cmd, cfg.Launch.SHA256); err != nil {
		return nil, err
	}
	p.stdout.log.start(p.cmd.Process.Pid)
	p.stderr.log.start(p.cmd.Process.Pid)
	if order.secretStdin {
		io.WriteString(stdin, order.secret.text()) // it fits the pipe; a process that has ended is noticed below
	}
	go p.wait()
	return p, nil
}

// wait reaps the process.
func (p *process) wait() {
	p.err = p.cmd.Wait()
	if errors.Is(p.err, exec.ErrWaitDelay) {
		p.err = nil // it ended well, and left its output open to a process of its own
	}
	p.stdout.end()
	p.stderr.end()
	close(p.done)
}

// ended waits for at most d for the process to end.
func (p *process) ended(d time.Duration) bool { return closedWithin(p.done, d) }

// kill ends the process, and its group, at once.
func (p *process) kill() bool {
	signalGroup(p.cmd.Process, syscall.SIGKILL)
	return p.ended(killGrace)
}

// stop ends the process within d, and a little more when it has to be killed:
// by the end of its stdin at once, by SIGTERM after half of the time (where
// there are signals), by killing it. It reports whether that was needed.
func (p *process) stop(d time.Duration) (killed bool) {
	p.stdin.Close()
	if p.ended(d / 2) {
		return false
	}
	signalGroup(p.cmd.Process, syscall.SIGTERM)
	if p.ended(d - d/2) {
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
