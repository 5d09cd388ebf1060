package plugwire

import (
	"bytes"
	"context"
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	maxLogLine  = 64 << 10               // bytes of a line that are logged
	logBuffer   = 256 << 10              // bytes of a pipe that wait for the Logger
	logPatience = 100 * time.Millisecond // how long a Logger may take nothing before lines are dropped

	cutMark = "... (the line goes on)" // ends a message of which only the beginning is logged
)

// outputLog makes records of Config.Logger from what a plugin prints on one of
// its pipes. The goroutine that reads the pipe calls write, which waits for a
// slow Logger, but never long for one that is stuck. The methods of a nil
// *outputLog do nothing.
type outputLog struct {
	logger *slog.Logger // with the plugin's name
	level  slog.Level   // of a line that is no record
	secret []byte       // the launch's, in text, which is not logged

	mu      sync.Mutex
	pending []byte // printed, and not yet taken by run; at most logBuffer bytes
	gap     bool   // what was printed after pending was dropped
	lost    int    // lines dropped
	ended   bool

	more chan struct{} // of capacity 1: run has something to take
	room chan struct{} // of capacity 1: run has taken it
	done chan struct{} // closed by run

	// Of the goroutine that writes.
	stuck bool // the Logger took nothing for logPatience
	torn  bool // the beginning of the line that is being printed was dropped

	// Of run.
	handler slog.Handler
	line    []byte // the unfinished line, at most maxLogLine bytes and one
	cut     bool   // and its beginning was logged
	launch  bool   // the launch line is still to come
	crash   crashState
}

// outputLogs returns the logs of a plugin's stdout and stderr, or nil without a Logger.
func outputLogs(template *exec.Cmd, cfg *Config, key *secret) (stdout, stderr *outputLog) {
	if cfg.Logger == nil {
		return nil, nil
	}
	logger := cfg.Logger.With(logPlugin, filepath.Base(commandName(template)))
	newLog := func() *outputLog {
		l := &outputLog{logger: logger, level: cfg.Launch.LogLevel,
			more: make(chan struct{}, 1), room: make(chan struct{}, 1), done: make(chan struct{})}
		if key != nil {
			l.secret = []byte(strings.TrimSpace(key.text()))
		}
		return l
	}
	stdout, stderr = newLog(), newLog()
	stdout.launch = true
	return stdout, stderr
}

// start begins to log, of the process with the id.
func (l *outputLog) start(pid int) {
	if l == nil {
		return
	}
	l.handler = l.logger.With(logPid, pid).Handler()
	go l.run()
}

// write takes p, which the caller may then change.
func (l *outputLog) write(p []byte) {
	for l != nil && len(p) > 0 {
		n := min(len(p), logBuffer)
		l.push(p[:n])
		p = p[n:]
	}
}

// push has p logged, or dropped when there is no room and the Logger is stuck.
func (l *outputLog) push(p []byte) {
	if l.torn { // the rest of the line goes too
		n := bytes.IndexByte(p, '\n') + 1
		l.torn = n == 0
		if n == 0 {
			n = len(p)
		}
		l.drop(p[:n], false)
		p = p[n:]
	}
	if len(p) == 0 || l.add(p) {
		return
	}
	timer := time.NewTimer(logPatience)
	defer timer.Stop()
	for !l.stuck {
		select {
		case <-l.room:
			if l.add(p) {
				return
			}
		case <-timer.C:
			l.stuck = true
		}
	}
	l.drop(p, true)
	l.torn = p[len(p)-1] != '\n'
}

// add passes p on if there is room.
func (l *outputLog) add(p []byte) bool {
	l.mu.Lock()
	if l.gap || len(l.pending)+len(p) > logBuffer {
		l.mu.Unlock()
		return false
	}
	l.pending = append(l.pending, p...)
	l.mu.Unlock()
	l.stuck = false
	signalOne(l.more)
	return true
}

// drop counts the lines that end in p, which is not passed on. A line is counted
// where it ends: the part of it that is pending is dropped by run, at the gap.
func (l *outputLog) drop(p []byte, gap bool) {
	l.mu.Lock()
	l.lost += bytes.Count(p, []byte("\n"))
	l.gap = l.gap || gap
	l.mu.Unlock()
}

// end says that nothing more is printed. What was is logged, unless the Logger is stuck.
func (l *outputLog) end() {
	if l == nil {
		return
	}
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	signalOne(l.more)
	closedWithin(l.done, logPatience)
}

// run logs until the end.
func (l *outputLog) run() {
	defer close(l.done)
	var taken []byte
	for ended := false; !ended; {
		<-l.more
		l.mu.Lock()
		taken, l.pending = l.pending, taken[:0]
		gap, lost := l.gap, l.lost
		l.gap, l.lost = false, 0
		ended = l.ended
		l.mu.Unlock()
		signalOne(l.room)
		l.split(taken)
		if gap {
			l.line, l.cut = l.line[:0], false
		}
		if gap || lost > 0 {
			l.handle(l.record(slog.LevelWarn, "plugwire: Config.Logger is too slow for what the plugin prints: lines were dropped",
				slog.Int("lines", lost)))
		}
	}
	if len(l.line) > 0 && !l.cut {
		l.emit(l.line, "")
	}
}

// split logs the lines that end in p, and keeps the beginning of the next.
func (l *outputLog) split(p []byte) {
	for len(p) > 0 {
		piece, rest, whole := bytes.Cut(p, []byte("\n"))
		p = rest
		l.line = append(l.line, piece[:min(len(piece), maxLogLine+1-len(l.line))]...)
		if len(l.line) > maxLogLine && !l.cut {
			l.emit(l.line[:maxLogLine], cutMark)
			l.cut = true
		}
		if whole {
			if !l.cut {
				l.emit(l.line, "")
			}
			l.line, l.cut = l.line[:0], false
		}
	}
}

// emit logs one line, without its end. A blank one says nothing.
func (l *outputLog) emit(line []byte, mark string) {
	line = bytes.TrimRight(line, " \t\r")
	if l.launch {
		if _, before, err := findLaunchLine(string(line)); err == nil {
			l.launch, line = false, line[:before]
		}
	}
	if len(line) == 0 {
		return
	}
	if len(l.secret) > 0 && bytes.Contains(line, l.secret) { // what is no plugin may well repeat its stdin
		line = bytes.ReplaceAll(line, l.secret, []byte("[one-time secret]"))
	}
	if r, ok := parseLogRecord(line); ok {
		l.crash = noCrash
		l.handle(r)
		return
	}
	text := string(line)
	level := l.level
	if l.crash = l.crash.after(text); l.crash != noCrash {
		level = slog.LevelError
	}
	l.handle(l.record(level, visible(text, true)+mark))
}

func (l *outputLog) record(level slog.Level, msg string, attrs ...slog.Attr) slog.Record {
	r := slog.NewRecord(time.Now(), level, msg, 0)
	r.AddAttrs(attrs...)
	return r
}

func (l *outputLog) handle(r slog.Record) {
	if ctx := context.Background(); l.handler.Enabled(ctx, r.Level) {
		l.handler.Handle(ctx, r)
	}
}

// crashState says whether lines belong to the report of a crash.
type crashState int

const (
	noCrash crashState = iota
	inStack            // of a goroutine, which a program may print and go on
	dying              // the Go runtime said why it ends the program
)

// after returns the state behind a line that is neither blank nor a record.
func (s crashState) after(line string) crashState {
	switch {
	case strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: "):
		return dying
	case s == dying:
		return dying
	case isGoroutineLine(line):
		return inStack
	case s == inStack && (line[0] == '\t' || strings.HasSuffix(line, ")") || strings.HasPrefix(line, "created by ")):
		return inStack
	}
	return noCrash
}

// isGoroutineLine recognises the headline of a stack, such as "goroutine 1 [running]:".
func isGoroutineLine(line string) bool {
	rest, ok := strings.CutPrefix(line, "goroutine ")
	digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
	return ok && digits > 0 && strings.HasPrefix(rest[digits:], " [")
}

// signalOne sends on a channel of capacity 1, unless it is signalled already.
func signalOne(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
