package plugwire

import (
	"io"
	"net"
)

// launchOutput takes a plugin's stdout: it finds the launch line, and has the rest logged.
type launchOutput struct {
	scanner launchScanner
	found   bool
	result  chan launchResult // of capacity 1: the launch line, an error, or neither when stdout ended without
	log     *outputLog        // or nil
	wire    net.Conn          // gets what follows the launch line, where that is the connection; else nil
}

type launchResult struct {
	line *launchLine
	err  error
}

// Write is called by the goroutine that reads the pipe. It takes everything.
func (o *launchOutput) Write(p []byte) (int, error) {
	text := p
	if o.wire != nil && o.found {
		text = nil
	} else if !o.found {
		before := o.scanner.seen
		o.report(o.scanner.scan(p))
		if o.wire != nil && o.found {
			text = p[:o.scanner.seen-before]
		}
	}
	o.log.write(text)
	if o.wire != nil && o.found {
		o.wire.Write(p[len(text):]) // once the connection is closed, this takes everything
	}
	return len(p), nil
}

// end is called after the last Write.
func (o *launchOutput) end() {
	o.abandon()
	if !o.found {
		o.report(o.scanner.end())
	}
	if !o.found {
		o.result <- launchResult{}
	}
	o.log.end()
}

// abandon ends the connection over stdout, if there is one.
func (o *launchOutput) abandon() {
	if o.wire != nil {
		o.wire.Close()
	}
}

func (o *launchOutput) report(line *launchLine, err error) {
	if line != nil || err != nil {
		o.found = true
		o.result <- launchResult{line, err}
	}
}

// stderrOutput takes a plugin's stderr: it keeps the end, and passes everything on.
type stderrOutput struct {
	copy io.Writer // the template's Stderr; nil when there is none or it failed
	tail []byte
	log  *outputLog // or nil
}

// Write is called by the goroutine that reads the pipe. It takes everything.
func (o *stderrOutput) Write(p []byte) (int, error) {
	o.tail = keepEnd(o.tail, p, stderrTail)
	if o.copy != nil {
		if _, err := o.copy.Write(p); err != nil {
			o.copy = nil
		}
	}
	o.log.write(p)
	return len(p), nil
}

// end is called after the last Write.
func (o *stderrOutput) end() { o.log.end() }
