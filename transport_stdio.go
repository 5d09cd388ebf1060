package plugwire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"time"
)

// The transport "stdio": the connection is the plugin's stdin and stdout, so
// that a command such as ssh, "docker exec -i" or "kubectl exec -i" can be
// launched that runs the plugin somewhere else, with nothing listening there.
//
// An environment does not get that far. What the host has to tell comes as the
// first line of stdin, in the form of a shell's assignment,
//
//	PLUGWIRE_LAUNCH=1|cookie=plugwire|transports=stdio|versions=1,2
//
// and the connection begins after it. On stdout it begins after the launch line;
// what is printed before that (a login's greeting, say) is the plugin's output as
// elsewhere. There is no one-time secret: it would have to travel on the very
// connection that it protects. Who is there is for the command to see to.

var stdioAddr = inheritedAddr{stdioScheme, "-"}

// stdioConn is a net.Conn that reads from one file and writes to another.
type stdioConn struct {
	in  readEnd
	out writeEnd
}

type readEnd interface {
	io.ReadCloser
	SetReadDeadline(time.Time) error
}

type writeEnd interface {
	io.WriteCloser
	SetWriteDeadline(time.Time) error
}

// newStdioConn returns a connection that owns both files. Where the system cannot
// interrupt a read from in, a goroutine reads it, which ends with in alone.
func newStdioConn(in readEnd, out writeEnd) *stdioConn {
	if in.SetReadDeadline(time.Time{}) != nil {
		near, far := net.Pipe()
		go func() {
			passOn(far, in)
			far.Close()
			in.Close()
		}()
		return &stdioConn{near, out}
	}
	return &stdioConn{in, out}
}

func (c *stdioConn) Read(b []byte) (int, error) {
	n, err := c.in.Read(b)
	return n, stdioError("read", err)
}

func (c *stdioConn) Write(b []byte) (int, error) {
	n, err := c.out.Write(b)
	return n, stdioError("write", err)
}

// stdioError makes of a file's error what a net.Conn would have returned.
func stdioError(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		err = path.Err
	}
	if errors.Is(err, os.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
		err = net.ErrClosed
	}
	return &net.OpError{Op: op, Net: stdioScheme, Addr: stdioAddr, Err: err}
}

func (c *stdioConn) Close() error {
	return stdioError("close", errors.Join(c.out.Close(), c.in.Close()))
}

// CloseWrite says that nothing more will be written.
func (c *stdioConn) CloseWrite() error { return stdioError("close", c.out.Close()) }

func (c *stdioConn) LocalAddr() net.Addr  { return stdioAddr }
func (c *stdioConn) RemoteAddr() net.Addr { return stdioAddr }

func (c *stdioConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *stdioConn) SetReadDeadline(t time.Time) error { return c.in.SetReadDeadline(t) }

// SetWriteDeadline does nothing for pipes of Windows, which have no deadlines: a
// write that blocks there ends with the other side's process.
func (c *stdioConn) SetWriteDeadline(t time.Time) error {
	if err := c.out.SetWriteDeadline(t); !errors.Is(err, os.ErrNoDeadline) {
		return err
	}
	return nil
}

// orderFromStdin reads the host's order from the first line of a stdin that is a
// pipe or a socket. It returns "" when there is none within the time; then what
// was read is put back, for a program that may have other uses for its stdin.
func orderFromStdin(wait time.Duration) (string, error) {
	info, err := os.Stdin.Stat()
	switch {
	case err != nil || wait <= 0:
		return "", nil
	case info.Mode()&os.ModeSocket != 0:
		return orderFromSocket(wait), nil
	case info.Mode()&os.ModeNamedPipe == 0:
		return "", nil
	}
	in, err := dupStdin()
	if err != nil {
		return "", nil
	}
	type result struct {
		line []byte
		is   bool
	}
	read := make(chan result, 1)
	go func() {
		line, is, _ := readOrderLine(in)
		read <- result{line, is}
	}()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case r := <-read:
		if r.is {
			in.Close()
			return orderOf(r.line), nil
		}
		return "", unreadStdin(func() []byte { return r.line }, in)
	case <-timer.C:
		return "", unreadStdin(func() []byte { return (<-read).line }, in)
	}
}

// readOrderLine reads up to the end of a line that is an order, and of anything
// else no more than it takes to see that it is none. err says that in ended before.
func readOrderLine(in io.Reader) (line []byte, is bool, err error) {
	prefix := []byte(launchVar + "=")
	var b [1]byte
	for len(line) < maxLaunchLine {
		if _, err := io.ReadFull(in, b[:]); err != nil {
			return line, false, err
		}
		line = append(line, b[0])
		n := min(len(line), len(prefix))
		switch {
		case !bytes.Equal(line[:n], prefix[:n]):
			return line, false, nil
		case b[0] == '\n':
			return line, true, nil
		}
	}
	return line, false, nil
}

// orderOf is the order in a line that is one.
func orderOf(line []byte) string { return string(line[len(launchVar)+1 : len(line)-1]) }

// unreadStdin has stdin begin again with what was read of it, which is known once
// read returns, before the rest.
func unreadStdin(read func() []byte, rest *os.File) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	if err := replaceStdin(r); err != nil {
		return err
	}
	go func() {
		defer w.Close()
		defer rest.Close()
		if _, err := w.Write(read()); err == nil {
			passOn(w, rest)
		}
	}()
	return nil
}

// takeStdio takes stdin and stdout for the connection. Who else uses them finds
// nothing on stdin, and what is printed goes to stderr.
func takeStdio() (*stdioConn, error) {
	if same(os.Stdout, os.Stderr) {
		return nil, &Error{Code: FailedPrecondition, Op: "launch", Message: "stdout, which is the connection, and stderr are the same here, and what is printed would break it",
			Hint: `run the plugin without "2>&1", or without a terminal`}
	}
	in, out, err := dupStdio()
	if err != nil {
		return nil, &Error{Code: Unavailable, Op: "launch", Message: "taking stdin and stdout for the connection", Err: err}
	}
	if null, err := os.Open(os.DevNull); err == nil {
		replaceStdin(null)
	}
	stdoutToStderr()
	return newStdioConn(in, out), nil
}

// hostStdio is what the host has of a connection over stdio: the end of stdin
// that it writes to, and what launchOutput passes on from stdout.
func hostStdio(stdin io.WriteCloser, o *launchOutput) (*stdioConn, error) {
	out, ok := stdin.(writeEnd)
	if !ok {
		return nil, fmt.Errorf("plugwire: %T has no deadlines", stdin)
	}
	near, far := net.Pipe()
	o.wire = far
	return &stdioConn{near, out}, nil
}
