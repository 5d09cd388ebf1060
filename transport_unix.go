//go:build unix

package plugwire

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/plugwire/plugwire/internal/lockfile"
	"golang.org/x/sys/unix"
)

// unixTransport connects processes of one machine through stream sockets in the
// file system. Addresses are "unix:///path" with an absolute path, taken as it
// stands, without percent-encoding; to listen also "unix:", which picks a path.
// On Linux paths may be longer than a socket address is.
type unixTransport struct{}

// maxUnixPath is how many bytes of a path fit a socket address, beside the NUL
// that ends it: 107 on Linux, 103 on macOS and the BSDs.
const maxUnixPath = len(syscall.RawSockaddrUnix{}.Path) - 1

// errnoCodes are the codes of system errors that have one of their own.
var errnoCodes = []errnoCode{
	{syscall.EADDRINUSE, AlreadyExists},
	{syscall.EROFS, PermissionDenied},
	{syscall.ENOTDIR, NotFound},
	{syscall.ENAMETOOLONG, InvalidArgument},
	{syscall.EPROTOTYPE, FailedPrecondition},
	{syscall.EMFILE, ResourceExhausted},
	{syscall.ENFILE, ResourceExhausted},
	{syscall.ENOSPC, ResourceExhausted},
	{syscall.ENOBUFS, ResourceExhausted},
	{syscall.ENOMEM, ResourceExhausted},
}

// Listen makes a socket with mode cfg.Unix.Mode and, if set, cfg.Unix.Group, to
// which nobody can connect before it has both. A socket that a server of the same user left behind
// when it was killed is replaced; anything else at the path stays and is an
// error. While the listener is open it holds a lock on the file path + ".lock",
// so of servers that start together one gets the path. Closing the listener
// removes both files, unless somebody has replaced them.
//
// "unix:" makes the socket at cfg.Unix.Path or, where that is not set, in a private
// directory of its own under cfg.Unix.Dir, which goes away with the listener.
func (unixTransport) Listen(ctx context.Context, addr string, cfg *Config) (net.Listener, error) {
	path, err := unixPath("listen", addr)
	if path == "" && err == nil && cfg.Unix.Path != "" {
		path, err = unixPath("listen", "unix://"+cfg.Unix.Path)
	}
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, sysError("listen", addr, err, "")
	}
	l := &unixListener{addr: addr, path: path, bufferSize: cfg.Unix.BufferSize}
	if path == "" {
		l.path, l.dir, err = privateSocketPath(addr, cfg.Unix.Dir)
	} else {
		l.lock, err = claimPath(ctx, addr, path)
	}
	if err == nil {
		group := -1
		if cfg.Unix.Group > 0 {
			group = cfg.Unix.Group
		}
		l.ln, l.made, err = bindUnix(l.path, cfg.Unix.Mode.Perm(), group)
	}
	if err != nil {
		err = listenError(addr, err)
		if also := l.release(); also != nil {
			err = errors.Join(err, also)
		}
		return nil, err
	}
	return l, nil
}

// Dial connects to a socket, not through a symbolic link in its last place. The
// socket must belong to this user or one of cfg.Unix.ServerUIDs, and so must the
// directory, unless root has it; only cfg.Authorize, if set, decides otherwise.
// While the server's backlog is full it waits until ctx ends; it sets no limit
// of its own. (Linux alone tells a full backlog from a server that is gone.)
func (unixTransport) Dial(ctx context.Context, addr string, cfg *Config) (net.Conn, error) {
	path, err := unixPath("dial", addr)
	if err != nil {
		return nil, err
	}
	if path == "" {
		return nil, &Error{Code: InvalidArgument, Op: "dial", Addr: addr, Message: "there is no path to dial",
			Hint: "only Listen picks one; dial the address of the listener"}
	}
	f, err := openSocketFile(path)
	if err != nil {
		return nil, unixDialError(addr, err)
	}
	defer f.close()
	if mode := f.file.Mode(); mode.Type() != fs.ModeSocket {
		return nil, &Error{Code: FailedPrecondition, Op: "dial", Addr: addr,
			Message: fmt.Sprintf("there is %s at the path, not a socket", fileKind(mode))}
	}
	if cfg.Authorize == nil {
		if err := f.checkOwners(addr, path, cfg); err != nil {
			return nil, err
		}
	}
	c, err := dialUnix(ctx, f.at)
	if err != nil {
		return nil, unixDialError(addr, err)
	}
	setBuffers(c, cfg.Unix.BufferSize)
	return named(c, path), nil
}

// Waits between attempts to connect to a server whose backlog is full.
const (
	firstDialRetry = time.Millisecond
	lastDialRetry  = 50 * time.Millisecond
)

var errBacklogFull = errors.New("the server's backlog is full, it accepts no connections")

// dialUnix connects, and keeps trying as long as the backlog is full: the kernel
// would make a blocking socket wait, but fails a non-blocking one with EAGAIN,
// and there is nothing to poll for.
func dialUnix(ctx context.Context, path string) (*net.UnixConn, error) {
	var d net.Dialer
	full := false
	for wait := firstDialRetry; ; wait = min(2*wait, lastDialRetry) {
		c, err := d.DialContext(ctx, "unix", path)
		switch {
		case err == nil:
			return c.(*net.UnixConn), nil
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded): // perhaps net saw the context's deadline before the context did
			<-ctx.Done()
			if full {
				err = errBacklogFull
			}
			return nil, fmt.Errorf("%w: %w", err, ctx.Err())
		case !errors.Is(err, syscall.EAGAIN):
			return nil, err
		}
		full = true
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("%w: %w", errBacklogFull, ctx.Err())
		}
	}
}

// unixDialError adds to an error what the reader can do about it.
func unixDialError(addr string, err error) error {
	var hint string
	switch {
	case errors.Is(err, fs.ErrNotExist):
		hint = "no server has made this socket: is it running, and is the path the same?"
	case errors.Is(err, syscall.ECONNREFUSED):
		hint = "the server that made this socket is gone or, except on Linux, its backlog is full"
	case errors.Is(err, syscall.EACCES):
		hint = "the socket or a directory above it is closed to this user; the server's Config.Unix.Mode decides"
	case errors.Is(err, syscall.EPROTOTYPE):
		hint = "the socket there is not a stream socket"
	}
	return sysError("dial", addr, err, hint)
}

// unixPath returns the path in an address, or "" in one without.
func unixPath(op, addr string) (string, error) {
	path := strings.TrimPrefix(strings.TrimPrefix(addr, "unix:"), "//")
	bad := func(message, hint string) (string, error) {
		return "", &Error{Code: InvalidArgument, Op: op, Addr: addr, Message: message, Hint: hint}
	}
	switch {
	case path == "":
		return "", nil
	case path[0] != '/':
		return bad("the path is not absolute", `write "unix:///path", with three slashes`)
	case strings.ContainsRune(path, 0):
		return bad("the path contains a NUL byte", "")
	case tooLong(path) != "":
		return bad(tooLong(path), "choose a shorter one; Config.Unix.Dir is where automatic ones are")
	}
	return path, nil
}

// unixListener is a listening socket and what has to go when it closes.
type unixListener struct {
	addr       string // as asked for
	path       string
	bufferSize int

	ln   *net.UnixListener
	made fs.FileInfo    // the file that bind made
	lock *lockfile.File // keeps the path, or nil
	dir  *privateDir    // or nil

	closing sync.Once
}

// Accept returns a *net.UnixConn, or a namedConn of one.
func (l *unixListener) Accept() (net.Conn, error) {
	c, err := l.ln.AcceptUnix()
	if err != nil {
		return nil, err
	}
	setBuffers(c, l.bufferSize)
	return named(c, l.path), nil
}

func (l *unixListener) Addr() net.Addr { return realAddr(l.ln.Addr(), l.path) }

// Close stops listening and removes what Listen made. Connections live on. Only
// the first call does something and says what failed.
func (l *unixListener) Close() error {
	err := net.ErrClosed
	l.closing.Do(func() {
		if err = l.release(); err != nil {
			err = sysError("close", l.addr, err, "")
		}
	})
	return err
}

// release undoes Listen, or as much of it as was done. The socket file goes
// first, while the open socket keeps its inode number from being given to
// another file, and the lock last.
func (l *unixListener) release() error {
	var errs []error
	if l.made != nil {
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.made) {
			errs = append(errs, pathError("unlink", l.path, unix.Unlink(l.path)))
		}
	}
	if l.ln != nil {
		errs = append(errs, l.ln.Close())
	}
	if l.dir != nil {
		errs = append(errs, l.dir.removeEmpty())
	}
	if l.lock != nil {
		errs = append(errs, l.lock.Release())
	}
	return errors.Join(errs...)
}

// pathError says which path an error is about; nil stays nil.
func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}
