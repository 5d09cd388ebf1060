// Package lockfile lets one process at a time own a path.
//
// The lock is an advisory one of the kernel on a file beside the path, so it
// ends with the process that holds it, however that ends. Removing a lock file
// is usually a race: somebody who opened it before can lock a file that no
// longer has a name, beside somebody who locks its successor. Here it is none,
// since only the holder removes it, and who gets a lock looks whether the file
// still has its name and else starts over.
package lockfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// ErrHeld is what Acquire returns when somebody else holds the lock.
var ErrHeld = errors.New("the lock is held by another process")

// A File is a lock that is held.
type File struct {
	path string
	f    *os.File
}

// maxTries bounds Acquire. A try fails only when another holder came and went
// in the few microseconds that it takes.
const maxTries = 1000

// Acquire takes the lock of the file at path, which it makes, with mode 0600,
// when there is none. It does not wait. It follows no symbolic link and accepts
// only a regular file of this process's effective user: any other could lock it
// at will.
func Acquire(path string) (*File, error) { return acquire(path, os.O_CREATE) }

// AcquireExisting is Acquire, but fails with fs.ErrNotExist when there is no file.
func AcquireExisting(path string) (*File, error) { return acquire(path, 0) }

func acquire(path string, create int) (*File, error) {
	for range maxTries {
		l, err := try(path, create)
		if err != nil {
			return nil, err
		}
		if l.named() {
			return l, nil
		}
		l.f.Close()
	}
	return nil, ErrHeld
}

func try(path string, create int) (*File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|create|openFlags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(checkOwner(f), lock(f)); err != nil {
		f.Close()
		return nil, err
	}
	return &File{path: path, f: f}, nil
}

// named reports whether the locked file is still the one at the path.
func (l *File) named() bool {
	held, err1 := l.f.Stat()
	now, err2 := os.Lstat(l.path)
	return err1 == nil && err2 == nil && os.SameFile(held, now)
}

// Release removes the file and gives the lock up. A file that is not empty is
// left where it is: somebody keeps something in it.
func (l *File) Release() error {
	var err error
	if fi, e := l.f.Stat(); e == nil && fi.Size() == 0 && l.named() {
		err = os.Remove(l.path)
	}
	return errors.Join(err, l.Close())
}

// Close gives the lock up and leaves the file.
func (l *File) Close() error {
	// Said explicitly: a child that was forked and has not yet called exec
	// shares the open file, and would keep the lock until it does.
	return errors.Join(unlock(l.f), l.f.Close())
}

// refused says why a file is not accepted as a lock.
func refused(path, why string) error {
	return fmt.Errorf("lock file %s %s: %w", path, why, fs.ErrPermission)
}
