//go:build unix

package plugwire

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/plugwire/plugwire/internal/lockfile"
	"golang.org/x/sys/unix"
)

// This file makes listening Unix sockets and clears the way for them.

// unixBacklog is how many connections may wait to be accepted. The kernel lowers
// it to its own limit (net.core.somaxconn, kern.ipc.somaxconn).
const unixBacklog = 4096

// bindUnix makes a listening socket at path, where nothing may be, and returns
// it with the file it made, which the caller removes, also after an error. The
// file appears with mode, or with less of it where the umask takes bits away,
// which come back, and the group becomes right, before anybody can connect:
// until listen, which comes last, connecting is refused. That is all there is
// where the mode of a socket cannot be set before it has a path. The umask, which
// belongs to the whole process, is not touched. A group of -1 is this process's.
func bindUnix(path string, mode fs.FileMode, group int) (ln *net.UnixListener, made fs.FileInfo, err error) {
	fd, err := newUnixSocket(mode)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close() // the listener gets a duplicate
	if err := bindSocket(fd, path); err != nil {
		return nil, nil, err
	}
	if made, err = os.Lstat(path); err != nil {
		return nil, nil, err
	}
	if made.Mode().Type() != fs.ModeSocket || !isOurs(made) {
		return nil, nil, pathError("bind", path, errReplaced)
	}
	if group != -1 || made.Mode().Perm() != mode {
		if err := settleSocket(path, made, mode, group); err != nil {
			return nil, made, err
		}
	}
	if err := unix.Listen(fd, unixBacklog); err != nil {
		return nil, made, os.NewSyscallError("listen", err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, made, err
	}
	return l.(*net.UnixListener), made, nil
}

// privateSocketPath makes a private directory under parent, and returns it and
// a path in it that nobody can know before.
func privateSocketPath(addr, parent string) (path string, dir *privateDir, err error) {
	if parent, err = privateParent(parent); err != nil {
		return "", nil, err
	}
	path = filepath.Join(parent, privateName(), strings.ToLower(rand.Text()[:8]))
	if why := tooLong(path); why != "" {
		return "", nil, &Error{Code: InvalidArgument, Op: "listen", Addr: addr, Message: path + ": " + why,
			Hint: "set Config.Unix.Dir, or TMPDIR, to a shorter directory"}
	}
	if dir, err = newPrivateDir(parent); err != nil {
		return "", nil, err
	}
	return filepath.Join(dir.path, filepath.Base(path)), dir, nil
}

var (
	errSocketInUse = fmt.Errorf("another server is listening there: %w", syscall.EADDRINUSE)
	errReplaced    = errors.New("somebody replaced the file meanwhile")
)

// claimPath takes the lock of path and removes a stale socket there. A lock that
// it returns together with an error is for the caller to release.
//
// The lock is held as long as the listener lives, not only during the takeover.
// So the lock alone tells a live server of this library from a dead one, also
// where a connection attempt cannot: between bind and listen, and, on systems
// other than Linux, when its backlog is full.
func claimPath(ctx context.Context, addr, path string) (*lockfile.File, error) {
	lock, err := lockfile.Acquire(path + ".lock")
	if errors.Is(err, lockfile.ErrHeld) {
		return nil, errSocketInUse
	}
	if err != nil {
		return nil, err
	}
	return lock, removeStale(ctx, addr, path)
}

// removeStale removes the socket at path if it is ours, refuses connections, and
// is still the same file after it did. Nothing there is fine; everything else is
// an error. The caller holds the lock.
func removeStale(ctx context.Context, addr, path string) error {
	f, err := openSocketFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.close()
	found := f.file
	if found.Mode().Type() != fs.ModeSocket {
		return &Error{Code: AlreadyExists, Op: "listen", Addr: addr, Err: fs.ErrExist,
			Message: fmt.Sprintf("there is %s at the path, not a socket", fileKind(found.Mode())),
			Hint:    "remove it, or choose another path"}
	}
	if !isOurs(found) {
		return &Error{Code: PermissionDenied, Op: "listen", Addr: addr, Err: fs.ErrExist,
			Message: "the socket at the path belongs to another user",
			Hint:    "remove it as that user, or choose another path"}
	}
	if err := refusesConnections(ctx, f.at); err != nil {
		return err
	}
	if again, err := os.Lstat(path); err != nil || !os.SameFile(found, again) {
		return pathError("unlink", path, errReplaced)
	}
	return pathError("unlink", path, unix.Unlink(path))
}

// refusesConnections returns nil if nobody listens on the socket at path. A
// server that does sees a connection that closes at once.
func refusesConnections(ctx context.Context, path string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		c.Close()
		return errSocketInUse
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EPROTOTYPE):
		return errSocketInUse // its backlog is full; it is not a stream socket
	}
	return err
}

// listenError adds to an error what the reader can do about it.
func listenError(addr string, err error) error {
	var hint string
	var pe *fs.PathError
	switch {
	case errors.As(err, &pe) && strings.HasSuffix(pe.Op, "chown"):
		hint = "this user must be a member of the group Config.Unix.Group"
	case errors.Is(err, syscall.EADDRINUSE):
		hint = "stop that server, or choose another path"
	case errors.Is(err, fs.ErrNotExist):
		hint = "the directory of the socket must exist"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		hint = "this user must be able to make files in the socket's directory"
	}
	return sysError("listen", addr, err, hint)
}

// fileKind names the kind of a file that is not a socket.
func fileKind(m fs.FileMode) string {
	switch m.Type() {
	case 0:
		return "a regular file"
	case fs.ModeDir:
		return "a directory"
	case fs.ModeSymlink:
		return "a symbolic link"
	case fs.ModeNamedPipe:
		return "a named pipe"
	}
	return "a special file"
}
