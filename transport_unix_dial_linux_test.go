package plugwire

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
)

// refusedUnconnected checks that dialling addr is refused for the owner of what,
// before it connects, and that Config.Unix.ServerUIDs or Authorize changes that.
func refusedUnconnected(t *testing.T, ln net.Listener, addr, what string) {
	t.Helper()
	d, err := unixTransport{}.Dial(t.Context(), addr, new(Config).withDefaults())
	if err == nil {
		d.Close()
	}
	wantError(t, err, PermissionDenied, "dial", addr, what, "belongs to uid 65534", "allowed is uid 0 ", "Config.Unix.ServerUIDs")
	for _, cfg := range []*Config{
		{Unix: UnixConfig{ServerUIDs: []int{1, nobody}}},
		{Authorize: func(*Peer) error { return nil }},
	} {
		d, err := unixTransport{}.Dial(t.Context(), addr, cfg.withDefaults())
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if _, err := d.Write([]byte("allowed")); err != nil {
			t.Fatal(err)
		}
		a, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		buf := make([]byte, 8)
		if n, err := a.Read(buf); string(buf[:n]) != "allowed" { // and not the end of one that was refused
			t.Errorf("accepted a connection that says %q, %v", buf[:n], err)
		}
	}
}

func TestT03SocketOfAnotherUserIsNotDialled(t *testing.T) {
	dir := socketDir(t)
	if err := os.Chmod(dir, 0o777|fs.ModeSticky); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "x.sock")
	var squatter net.Listener
	asNobody(t, func() (err error) {
		squatter, err = net.Listen("unix", path)
		return err
	})
	defer squatter.Close()
	refusedUnconnected(t, squatter, "unix://"+path, "the socket "+path+" belongs")

	_, err := unixTransport{}.Listen(t.Context(), "unix://"+path, new(Config).withDefaults())
	wantError(t, err, PermissionDenied, "listen", "unix://"+path, "another user")
}

func TestT03SocketInADirectoryOfAnotherUserIsNotDialled(t *testing.T) {
	dir := socketDir(t)
	path := filepath.Join(dir, "x.sock")
	ln := listenUnix(t, "unix://"+path, nil)
	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	if err := os.Chown(dir, nobody, -1); err != nil {
		t.Fatal(err)
	}
	refusedUnconnected(t, ln, "unix://"+path, "the directory "+dir+"/ belongs")
}

// A directory that all may write to, such as an emptyDir of Kubernetes, is fine:
// what somebody else puts there is his own.
func TestASocketInADirectoryOfAllIsDialled(t *testing.T) {
	dir := socketDir(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	addr := "unix://" + filepath.Join(dir, "x.sock")
	connects(t, unixTransport{}, listenUnix(t, addr, nil), addr)
}

// What is at a path changes all the time between the right server's socket and
// what a dialler must refuse. Nothing may come between its look and connecting.
func TestT04NoSwapBetweenCheckAndConnect(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "pw")
	if err != nil {
		dir = socketDir(t)
	}
	defer os.RemoveAll(dir)
	in := func(name string) string { return filepath.Join(dir, name) }
	wrong := map[string]func() error{
		"a symbolic link": func() error { return os.Symlink(in("wrong"), in("tmp")) },
	}
	if os.Geteuid() == 0 {
		wrong["another user's socket"] = func() error {
			return errors.Join(os.Lchown(in("wrong"), nobody, -1), os.Link(in("wrong"), in("tmp")))
		}
	} else {
		t.Log("not root: no swap for another user's socket")
	}
	for what, put := range wrong {
		t.Run(what, func(t *testing.T) {
			var accepted [2]atomic.Int32
			for i, name := range []string{"right", "wrong"} {
				ln, err := net.Listen("unix", in(name))
				if err != nil {
					t.Fatal(err)
				}
				served := make(chan struct{})
				defer func() { ln.Close(); <-served }()
				go func() {
					defer close(served)
					for {
						c, err := ln.Accept()
						if err != nil {
							return
						}
						accepted[i].Add(1)
						c.Close()
					}
				}()
			}
			stop, stopped := make(chan struct{}), make(chan struct{})
			defer func() { close(stop); <-stopped }()
			swap := func() error {
				return errors.Join(os.Link(in("right"), in("tmp")), os.Rename(in("tmp"), in("x")),
					put(), os.Rename(in("tmp"), in("x")))
			}
			if err := swap(); err != nil {
				t.Fatal(err)
			}
			go func() {
				defer close(stopped)
				for {
					select {
					case <-stop:
						return
					default:
					}
					if err := swap(); err != nil {
						t.Error(err)
						return
					}
				}
			}()
			cfg := new(Config).withDefaults()
			connected, refused := 0, 0
			for range 1000 {
				c, err := unixTransport{}.Dial(t.Context(), "unix://"+in("x"), cfg)
				switch code := CodeOf(err); {
				case err == nil:
					connected++
					c.Read(make([]byte, 1)) // until it has been accepted
					c.Close()
				case code == FailedPrecondition || code == PermissionDenied:
					refused++
				default:
					t.Fatal(err)
				}
			}
			t.Logf("connected %d times, refused %d times; the wrong server accepted %d", connected, refused, accepted[1].Load())
			if n := accepted[1].Load(); n != 0 {
				t.Errorf("connected to the wrong server %d times", n)
			}
		})
	}
}
