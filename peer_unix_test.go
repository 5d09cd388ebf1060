//go:build unix

package plugwire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Another user and its group, which are told apart.
const (
	otherUID = 65534
	otherGID = 65533
)

func init() {
	children["other-dials"] = otherDials
	children["other-serves"] = otherServes
}

// becomeOther gives up root for good, in all threads. (A child cannot be started
// as another user, who may not be allowed to read the test's binary.)
func becomeOther() {
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(otherGID), syscall.Setuid(otherUID)); err != nil { // real, effective and saved
		fmt.Println(err)
		os.Exit(1)
	}
}

const childTriesEnv = "PLUGWIRE_TEST_TRIES"

// otherDials is a child that dials as the other user, which knows that the server
// runs as root, and prints how often it got in and the last error.
func otherDials() {
	becomeOther()
	in, last := 0, ""
	tries, _ := strconv.Atoi(os.Getenv(childTriesEnv))
	for range tries {
		c, err := Dial(context.Background(), os.Getenv(childAddrEnv), &Config{Unix: UnixConfig{ServerUIDs: []int{0}}})
		if err != nil {
			last = err.Error()
			continue
		}
		if reply, err := c.Call(context.Background(), "echo", []byte("hello")); err == nil && string(reply) == "hello" {
			in++
		}
		c.Close()
	}
	json.NewEncoder(os.Stdout).Encode(dialled{in, last})
}

type dialled struct {
	In   int
	Last string
}

// otherServes is a child that serves as the other user, lets root in until its
// input ends, and prints how many it has refused.
func otherServes() {
	becomeOther()
	s := &Server{Mux: echoMux(nil), Config: &Config{Unix: UnixConfig{Mode: 0o600, ClientUIDs: []int{0}}}}
	l, err := s.Listen(os.Getenv(childAddrEnv))
	fmt.Println("listening:", err)
	if err != nil {
		return
	}
	go s.Serve(l)
	io.Copy(io.Discard, os.Stdin)
	s.Close()
	fmt.Println("refused:", s.Stats().Refused)
}

func needRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: no process can be started as another user")
	}
}

// openSocketDir returns a directory that everybody may enter.
func openSocketDir(t *testing.T) string {
	dir := socketDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// dialAsOther serves with cfg at a socket that everybody may connect to, has the
// other user dial, and returns what it saw and how many the server says it refused.
func dialAsOther(t *testing.T, cfg *Config, tries int) (saw dialled, refused uint64) {
	t.Helper()
	umask := syscall.Umask(0) // no test runs at the same time
	defer syscall.Umask(umask)
	full := *cfg
	full.Unix.Mode = 0o666
	s := &Server{Mux: echoMux(nil), Config: &full}
	path := filepath.Join(openSocketDir(t), "s")
	l, err := s.Listen("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() {
		s.Close()
		if err := <-served; err != ErrServerClosed {
			t.Error(err)
		}
	}()
	if fi, err := os.Stat(path); err != nil || fi.Mode() != fs.ModeSocket|0o666 {
		t.Fatalf("the socket is %v, %v", fi.Mode(), err)
	}
	cmd := childCommand("other-dials", childAddrEnv+"=unix://"+path, childTriesEnv+"="+strconv.Itoa(tries))
	out, err := cmd.CombinedOutput()
	if err == nil {
		err = json.Unmarshal(out, &saw)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	until(t, "the server has seen all", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.handshakes) == 0
	})
	return saw, s.Stats().Refused
}

func TestT01AnotherUserIsRefused(t *testing.T) {
	needRoot(t)
	tries := longRun(500, 1000)
	for name, cfg := range map[string]*Config{
		"by default":                {},
		"other users are listed":    {Unix: UnixConfig{ClientUIDs: []int{otherGID, -1}, ClientGIDs: []int{otherUID, -1, 0}}},
		"it is listed for diallers": {Unix: UnixConfig{ServerUIDs: []int{otherUID}}},
	} {
		t.Run(name, func(t *testing.T) {
			saw, refused := dialAsOther(t, cfg, tries)
			if saw.In != 0 {
				t.Errorf("it got in %d times of %d", saw.In, tries)
			}
			for _, want := range []string{"refused uid 65534 gid 65533 pid ", "a client may run as uid [0", "add 65534 to the server's Config.Unix.ClientUIDs"} {
				if !strings.Contains(saw.Last, want) {
					t.Errorf("it reads %q, which does not say %q", saw.Last, want)
				}
			}
			if refused != uint64(tries) {
				t.Errorf("%d were refused, %d are counted", tries, refused)
			}
		})
	}
}

func TestUsersAndGroupsThatAreListedGetIn(t *testing.T) {
	needRoot(t)
	const tries = 3
	for name, cfg := range map[string]*Config{
		"user":      {Unix: UnixConfig{ClientUIDs: []int{1, otherUID}}},
		"group":     {Unix: UnixConfig{ClientGIDs: []int{1, otherGID}}},
		"authorize": {Authorize: func(p *Peer) error { return nil }}, // which decides alone
	} {
		t.Run(name, func(t *testing.T) {
			if saw, refused := dialAsOther(t, cfg, tries); saw.In != tries || refused != 0 {
				t.Errorf("it got in %d times of %d, %d were refused; it reads %q", saw.In, tries, refused, saw.Last)
			}
		})
	}
}

// An application and its sidecar run as two users.
func TestT03ServerOfAnotherUserIsRefusedUnlessItIsListed(t *testing.T) {
	needRoot(t)
	dir := socketDir(t)
	if err := os.Chown(dir, otherUID, otherGID); err != nil {
		t.Fatal(err)
	}
	addr := "unix://" + filepath.Join(dir, "s")
	cmd := childCommand("other-serves", childAddrEnv+"="+addr)
	stdin, out := startChild(t, cmd)
	defer cmd.Process.Kill()
	if line, err := out.ReadString('\n'); line != "listening: <nil>\n" {
		t.Fatalf("the child says %q, %v", line, err)
	}
	for _, uids := range [][]int{nil, {-1, 0, otherGID}} {
		cfg := &Config{Unix: UnixConfig{ServerUIDs: uids, ClientUIDs: []int{otherUID}, ClientGIDs: []int{otherGID}}}
		_, err := Dial(t.Context(), addr, cfg)
		wantError(t, err, PermissionDenied, "dial", addr, "belongs to uid 65534", "add it to Config.Unix.ServerUIDs")
		// Whoever owns the file, the kernel says who serves there.
		nc, err := net.Dial("unix", strings.TrimPrefix(addr, "unix://"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = NewConn(t.Context(), nc, cfg)
		wantError(t, err, PermissionDenied, "handshake", addr, "refused uid 65534 gid 65533 pid ",
			"a server may run as uid [0", "add 65534 to the dialling side's Config.Unix.ServerUIDs")
	}
	c, err := Dial(t.Context(), addr, &Config{Unix: UnixConfig{ServerUIDs: []int{otherUID}}})
	if err != nil {
		t.Fatal(err)
	}
	if reply, err := c.Call(t.Context(), "echo", []byte("hello")); err != nil || string(reply) != "hello" {
		t.Errorf("reply %q, %v", reply, err)
	}
	if p := c.Peer(); p.UID != otherUID || p.GID != otherGID || p.PID != cmd.Process.Pid {
		t.Errorf("the peer is %v; want pid %d", p, cmd.Process.Pid)
	}
	closeBoth(c)
	stdin.Close()
	// That the dialler would not have it is no refusal of the server's.
	if line, err := out.ReadString('\n'); line != "refused: 0\n" {
		t.Errorf("the child says %q, %v", line, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
