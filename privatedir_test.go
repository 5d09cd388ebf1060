//go:build unix

package plugwire

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func init() {
	children["listen"] = func() { // until killed
		l, err := unixTransport{}.Listen(context.Background(), "unix:", (&Config{Unix: UnixConfig{Dir: os.Getenv(childAddrEnv)}}).withDefaults())
		must(err)
		fmt.Println(l.Addr())
		forever()
	}
}

// sweepAgain makes a private directory in parent as the first of a process
// does, and returns the others that are there.
func sweepAgain(t *testing.T, parent string) (left []string) {
	t.Helper()
	swept.Delete(parent)
	d, err := newPrivateDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	d.remove()
	entries, err := os.ReadDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		left = append(left, e.Name())
	}
	return left
}

func TestDirectoriesOfTheDeadAreSwept(t *testing.T) {
	parent := socketDir(t)
	server := childCommand("listen", childAddrEnv+"="+parent)
	stdout, err := server.StdoutPipe()
	if err == nil {
		err = server.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	if left := sweepAgain(t, parent); len(left) != 1 {
		t.Errorf("with a live server there is %q", left)
	}
	server.Process.Kill()
	server.Wait()
	if left := sweepAgain(t, parent); len(left) != 0 {
		t.Errorf("when it is dead there is %q", left)
	}

	lt := newLaunchTest(t, "good")
	p := lt.launch()
	if left := sweepAgain(t, lt.cfg.Unix.Dir); len(left) != 1 {
		t.Errorf("with a live plugin there is %q", left)
	}
	lt.greets(p)
}

// What may not be swept, each in a directory of its own that somebody might take for one.
func TestSweepingTakesOnlyWhatIsOurs(t *testing.T) {
	lock := func(dir string) error { return os.WriteFile(filepath.Join(dir, privateLock), nil, 0o600) }
	target := t.TempDir()
	if err := lock(target); err != nil {
		t.Fatal(err)
	}
	for what, row := range map[string]struct {
		make func(dir string) error
		gone bool
	}{
		"a dead one":                  {lock, true},
		"an empty one":                {func(dir string) error { return nil }, true},
		"one with a file":             {func(dir string) error { return errors.Join(lock(dir), os.WriteFile(dir+"/data", []byte("x"), 0o600)) }, false},
		"one with a directory":        {func(dir string) error { return errors.Join(lock(dir), os.Mkdir(dir+"/sub", 0o700)) }, false},
		"one with a symbolic link":    {func(dir string) error { return errors.Join(lock(dir), os.Symlink("/", dir+"/link")) }, false},
		"one that others may enter":   {func(dir string) error { return errors.Join(lock(dir), os.Chmod(dir, 0o755)) }, false},
		"one without the lock":        {func(dir string) error { return os.WriteFile(dir+"/sock", nil, 0o600) }, false},
		"a symbolic link":             {func(dir string) error { return errors.Join(os.Remove(dir), os.Symlink(target, dir)) }, false},
		"a file":                      {func(dir string) error { return errors.Join(os.Remove(dir), os.WriteFile(dir, nil, 0o700)) }, false},
		"one of another user":         {func(dir string) error { return errors.Join(lock(dir), os.Chown(dir, 65534, -1)) }, false},
		"one whose lock is a symlink": {func(dir string) error { return os.Symlink(filepath.Join(target, privateLock), dir+"/"+privateLock) }, false},
	} {
		parent := socketDir(t)
		dir := filepath.Join(parent, privateName())
		if err := errors.Join(os.Mkdir(dir, 0o700), row.make(dir)); err != nil {
			if errors.Is(err, fs.ErrPermission) {
				continue // only root can give a directory away
			}
			t.Fatal(err)
		}
		if left := sweepAgain(t, parent); len(left) == 0 != row.gone {
			t.Errorf("%s: left %q", what, left)
		}
	}
	other := filepath.Join(t.TempDir(), "plugwire-of-somebody12345") // not a name of ours
	if err := errors.Join(os.Mkdir(other, 0o700), lock(other)); err != nil {
		t.Fatal(err)
	}
	if left := sweepAgain(t, filepath.Dir(other)); len(left) != 1 {
		t.Error("swept a directory of another name")
	}
	if _, err := os.Lstat(filepath.Join(target, privateLock)); err != nil {
		t.Error("through a symbolic link:", err)
	}
}

// A sweep that comes between making a directory and locking it makes the maker start anew.
func TestSweepingAndMakingDoNotMeet(t *testing.T) {
	parent := socketDir(t)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				sweep(parent)
			}
		}
	}()
	for range 500 {
		d, err := newPrivateDir(parent)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d.path, "plugin.sock"), nil, 0o600); err != nil {
			t.Errorf("swept while it was held: %v", err)
		}
		d.remove()
	}
	close(stop)
	<-stopped
	if left := sweepAgain(t, parent); len(left) != 0 {
		t.Errorf("left %q", left)
	}
}
