package plugwire

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func init() {
	children["connects-and-exits"] = connectsAndExits
	children["inherits"] = inheritsConnection
}

// connectsAndExits is a child that connects, leaves the connection to a child of
// its own, and exits when its input ends.
func connectsAndExits() {
	nc, err := net.Dial("unix", strings.TrimPrefix(os.Getenv(childAddrEnv), "unix://"))
	if err == nil {
		cmd := childCommand("inherits")
		cmd.Stderr = os.Stderr
		var f *os.File
		if f, err = nc.(*net.UnixConn).File(); err == nil {
			cmd.ExtraFiles = []*os.File{f}
			err = cmd.Start()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	io.Copy(io.Discard, os.Stdin)
}

func inheritsConnection() {
	nc, err := net.FileConn(os.NewFile(3, "connection"))
	if err == nil {
		var c *Conn
		if c, err = NewConn(context.Background(), nc, serves(echoMux(nil))); err == nil {
			<-c.Done()
			return
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func TestT08WhoInheritsAConnectionIsNotWhoConnected(t *testing.T) {
	conns := make(chan *Conn, 1)
	s := &Server{Mux: NewMux(), Config: &Config{OnConn: func(c *Conn) { conns <- c }}}
	l, err := s.Listen("unix:")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() { s.Close(); <-served }()
	cmd := childCommand("connects-and-exits", childAddrEnv+"="+addrURI(l.Addr()))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	c := receive(t, "the connection", conns)
	p := c.Peer()
	self, _ := os.Executable()
	if p.PID != cmd.Process.Pid || p.Executable != self || !p.Valid() {
		t.Errorf("pid %d, program %q, valid %v; want pid %d, program %q", p.PID, p.Executable, p.Valid(), cmd.Process.Pid, self)
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if p.Valid() {
		t.Error("valid although the process has exited")
	}
	if reply, err := c.Call(t.Context(), "echo", []byte("still there")); err != nil || string(reply) != "still there" {
		t.Errorf("who inherited the connection replies %q, %v", reply, err)
	}
	closeBoth(c)
}

// A pusher sends a descriptor along with all that is written: with the first byte
// of each write, and with the rest.
type pusher struct {
	net.Conn
	u      *net.UnixConn
	rights []byte
	quiet  atomic.Bool
	pushed atomic.Int64
}

func (p *pusher) Write(b []byte) (int, error) {
	if p.quiet.Load() {
		return p.u.Write(b)
	}
	for n := 0; n < len(b); {
		part := b[n:]
		if n == 0 {
			part = b[:1]
		}
		m, _, err := p.u.WriteMsgUnix(part, p.rights, nil)
		if n += m; err != nil {
			return n, err
		}
		p.pushed.Add(1)
	}
	return len(b), nil
}

func TestT26PushedDescriptorsAreDropped(t *testing.T) {
	for _, pusherDials := range []bool{true, false} {
		t.Run(fmt.Sprintf("by who dials %v", pusherDials), func(t *testing.T) {
			watchdog(t)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			defer w.Close()
			fi, err := r.Stat()
			if err != nil {
				t.Fatal(err)
			}
			pipe := fmt.Sprintf("pipe:[%d]", fi.Sys().(*syscall.Stat_t).Ino)
			ends := func() (n int) { // descriptors of the pipe
				entries, err := os.ReadDir("/proc/self/fd")
				if err != nil {
					t.Skip("no /proc here:", err)
				}
				for _, e := range entries {
					if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && to == pipe {
						n++
					}
				}
				return n
			}
			dialled, accepted := unixPair(t)
			push := &pusher{rights: syscall.UnixRights(int(w.Fd()))}
			cfg := &Config{Mux: echoMux(nil), Authorize: anyone}
			var theirs, ours *Conn
			if pusherDials {
				push.Conn, push.u = dialled, dialled.(*net.UnixConn)
				theirs, ours = openPair(t, push, accepted, cfg, serves(echoMux(nil)))
			} else {
				push.Conn, push.u = accepted, accepted.(*net.UnixConn)
				ours, theirs = openPair(t, dialled, push, serves(echoMux(nil)), cfg)
			}
			if n := ends(); n != 2 || push.pushed.Load() == 0 {
				t.Errorf("after the handshake: %d descriptors of the pipe, want 2 (%d were pushed)", n, push.pushed.Load())
			}
			all := openDescriptors()
			for i := range 50 {
				for _, c := range []*Conn{theirs, ours} {
					if err := checkCall(t.Context(), c, 4000*i, uint64(i)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if n, now := ends(), openDescriptors(); n != 2 || now != all {
				t.Errorf("after calls: %d descriptors of the pipe, want 2; %d in all, %d before (%d were pushed)", n, now, all, push.pushed.Load())
			}
			push.quiet.Store(true)
			if _, err := theirs.Ping(t.Context()); err != nil { // what was pushed has arrived
				t.Fatal(err)
			}
			w.Close()
			if err := r.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("somebody still holds what was pushed: read %d bytes, %v", n, err)
			}
		})
	}
}
