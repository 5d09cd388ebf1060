//go:build unix

package plugwire

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/plugwire/plugwire/internal/lockfile"
)

// privateDir is a directory for a socket that this process has made. Only this
// user can enter it, and nobody can know its name before.
//
// A process that is killed leaves it behind. The next one that makes one beside
// it removes it; whether anybody is left is told by a lock on a file in it,
// which ends with the process that holds it.
type privateDir struct {
	path string
	lock *lockfile.File
}

const (
	privatePrefix = "plugwire-"
	privateRandom = 16 // characters of base32, 80 bits
	privateLock   = "lock"

	// Bounds of one sweep.
	maxSweepNames = 100_000 // in the parent directory
	maxSweepDirs  = 1000    // of those, looked at
	maxSweepFiles = 16      // in one of them; those of this library have three
)

func privateName() string { return privatePrefix + strings.ToLower(rand.Text()[:privateRandom]) }

// isPrivateName reports whether privateName may have made the name.
func isPrivateName(name string) bool {
	random, ok := strings.CutPrefix(name, privatePrefix)
	return ok && len(random) == privateRandom && strings.Trim(random, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

// privateParent returns the directory for private ones, absolute since a plugin
// may run elsewhere.
func privateParent(parent string) (string, error) {
	if parent == "" {
		parent = os.TempDir()
	}
	return filepath.Abs(parent)
}

// newPrivateDir makes a private directory in parent, by default the system's
// temporary one. The first time it also sweeps there.
func newPrivateDir(parent string) (*privateDir, error) {
	parent, err := privateParent(parent)
	if err != nil {
		return nil, err
	}
	if _, done := swept.LoadOrStore(parent, true); !done {
		sweep(parent)
	}
	for {
		d := &privateDir{path: filepath.Join(parent, privateName())}
		if err := os.Mkdir(d.path, 0o700); err != nil {
			return nil, err
		}
		d.lock, err = lockfile.Acquire(filepath.Join(d.path, privateLock))
		switch {
		case err == nil:
			return d, nil
		case !errors.Is(err, lockfile.ErrHeld) && !errors.Is(err, fs.ErrNotExist):
			os.RemoveAll(d.path)
			return nil, err
		}
		// Somebody swept it before it was locked.
	}
}

// adoptPrivateDir returns the directory of a plugin's socket, to be removed with
// it, if it is one that newPrivateDir made and whose host is gone.
func adoptPrivateDir(address string) *privateDir {
	path, ok := strings.CutPrefix(address, "unix://")
	dir := filepath.Dir(path)
	if !ok || !isPrivateName(filepath.Base(dir)) {
		return nil
	}
	lock, err := lockfile.Acquire(filepath.Join(dir, privateLock))
	if err != nil {
		return nil
	}
	return &privateDir{path: dir, lock: lock}
}

func (d *privateDir) name() string {
	if d == nil {
		return ""
	}
	return d.path
}

// remove removes the directory with all that is in it. It may be called again.
func (d *privateDir) remove() {
	if d != nil && d.lock != nil {
		os.RemoveAll(d.path)
		d.lock.Release()
		d.lock = nil
	}
}

// removeEmpty removes the directory, unless somebody else has put something there.
func (d *privateDir) removeEmpty() error {
	err := d.lock.Release()
	if e := syscall.Rmdir(d.path); e != nil && e != syscall.ENOENT {
		err = errors.Join(err, pathError("rmdir", d.path, e))
	}
	return err
}

// swept has the parent directories that this process has swept: once each is enough.
var swept sync.Map

// sweep removes the private directories in parent that nobody is left of.
func sweep(parent string) {
	f, err := os.Open(parent)
	if err != nil {
		return
	}
	names, _ := f.Readdirnames(maxSweepNames)
	f.Close()
	looked := 0
	for _, name := range names {
		if isPrivateName(name) {
			if looked++; looked > maxSweepDirs {
				return
			}
			sweepDir(filepath.Join(parent, name))
		}
	}
}

// sweepDir removes the private directory if it is ours, nobody holds a lock in
// it, and nothing is in it that this library would not have made: sockets and
// empty files. Whatever it is, nothing is followed out of it.
func sweepDir(path string) {
	found, err := os.Lstat(path)
	if err != nil || found.Mode() != fs.ModeDir|0o700 || !isOurs(found) {
		return
	}
	dir, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return
	}
	defer dir.Close()
	if opened, err := dir.Stat(); err != nil || !os.SameFile(found, opened) {
		return
	}
	lock, err := lockfile.AcquireExisting(filepath.Join(path, privateLock))
	if errors.Is(err, fs.ErrNotExist) {
		os.Remove(path) // only if it is empty: its maker was killed before it had the lock, or begins anew
		return
	}
	if err != nil {
		return
	}
	defer lock.Close()
	names, _ := dir.Readdirnames(maxSweepFiles + 1)
	fd := int(dir.Fd()) // os.Root would do as well, but adds 30 KB to a program that has nothing else of it
	for _, name := range names {
		var st unix.Stat_t
		err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		kind := uint32(st.Mode) & unix.S_IFMT
		if len(names) > maxSweepFiles || err != nil || kind != unix.S_IFSOCK && (kind != unix.S_IFREG || st.Size > 0) {
			return
		}
		if strings.HasSuffix(name, ".lock") { // of a plugin, which may outlive its host for a moment
			l, err := lockfile.AcquireExisting(filepath.Join(path, name))
			if err != nil {
				return
			}
			defer l.Close()
		}
	}
	for _, name := range names {
		unix.Unlinkat(fd, name, 0)
	}
	os.Remove(path)
}
