//go:build unix

package lockfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

func TestALockIsHeldByOneAndLeavesNothingBehind(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.lock")
	for range 3 {
		l, err := Acquire(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Lstat(path); err != nil || fi.Mode() != 0o600 {
			t.Errorf("the lock file: %v, %v; want mode 0600", fi, err)
		}
		if _, err := Acquire(path); !errors.Is(err, ErrHeld) {
			t.Errorf("acquired twice: %v", err)
		}
		if err := l.Release(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after Release: %v; want no file", err)
		}
	}
}

// Removing the file makes waiters lock one that has no name any more; they must
// notice. Each holder checks that it is alone.
func TestNobodySharesTheLockWhileItsFileComesAndGoes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.lock")
	var holders, turns atomic.Int32
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 300 {
				l, err := Acquire(path)
				if errors.Is(err, ErrHeld) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d holders", n)
				}
				turns.Add(1)
				holders.Add(-1)
				if err := l.Release(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if turns.Load() == 0 {
		t.Error("nobody ever got the lock")
	}
}

func TestWhatIsNotAnEmptyFileOfOursStays(t *testing.T) {
	dir := t.TempDir()
	target, link, full := filepath.Join(dir, "target"), filepath.Join(dir, "link"), filepath.Join(dir, "full")
	if err := errors.Join(os.WriteFile(full, []byte("mine"), 0o600), os.Symlink(target, link)); err != nil {
		t.Fatal(err)
	}
	if _, err := Acquire(link); err == nil {
		t.Error("followed a symbolic link")
	}
	if _, err := os.Lstat(target); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the link's target: %v; want none", err)
	}
	if _, err := Acquire(dir); err == nil {
		t.Error("locked a directory")
	}
	l, err := Acquire(full)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Release(); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(full); string(b) != "mine" {
		t.Errorf("a file with content: %q, %v after Release", b, err)
	}
}

func TestAnotherUsersFileIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.lock")
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, os.Geteuid()+1, -1); err != nil {
		t.Skip("only root can give a file away:", err)
	}
	if _, err := Acquire(path); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got %v; want a refusal", err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error("the file is gone:", err)
	}
}

func TestAReplacedLockFileIsNotRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.lock")
	l, err := Acquire(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(path, path+".old"), os.WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := l.Release(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error("removed a file that it had not locked:", err)
	}
}
