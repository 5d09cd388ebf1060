package plugwire

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"
)

func init() {
	children["crowd-memory"] = func() {
		debug.SetMemoryLimit(cgroupBytes * 5 / 8) // of the heap; the kernel counts sockets too
		serveCrowd(Limits{MaxMessage: crowdTotal, MaxServerBytes: cgroupBytes / 8, MaxCalls: 64})
	}
	children["crowd-descriptors"] = func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: fewDescriptors, Max: fewDescriptors}); err != nil {
			panic(err)
		}
		serveCrowd(Limits{})
	}
}

// serveCrowd is a child that serves at the address that it prints, from the time
// that its input gives a line until that ends.
func serveCrowd(limits Limits) {
	in := bufio.NewReader(os.Stdin)
	if _, err := in.ReadString('\n'); err != nil {
		panic(err)
	}
	s := &Server{Mux: crowdMux(nil), Config: &Config{Limits: limits}}
	l, err := s.Listen("unix:")
	if err != nil {
		panic(err)
	}
	go func() {
		if err := s.Serve(l); err != ErrServerClosed {
			panic(err)
		}
	}()
	fmt.Println(addrURI(l.Addr()))
	io.Copy(io.Discard, in)
	s.Close()
}

// startCrowdChild starts such a child, has before do something with its pid, and
// returns its address.
func startCrowdChild(t *testing.T, role string, before func(pid int)) (addr string) {
	t.Helper()
	cmd := childCommand(role)
	stdin, stdout := startChild(t, cmd)
	t.Cleanup(func() {
		stdin.Close()
		kill := time.AfterFunc(adversaryPatience, func() { cmd.Process.Kill() })
		defer kill.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the server's process: %v", err)
		}
	})
	if before != nil {
		before(cmd.Process.Pid)
	}
	fmt.Fprintln(stdin, "go")
	addr, err := stdout.ReadString('\n')
	if err != nil {
		t.Fatalf("the server's process says %q, %v", addr, err)
	}
	return strings.TrimSpace(addr)
}

const (
	cgroupBytes = 64 << 20
	crowdTotal  = 4 << 20 // of a message: one of 64 MiB could not be served in as much
)

// newCgroup makes a cgroup with a memory limit. The test is skipped where that
// cannot be done.
func newCgroup(t *testing.T) (add func(pid int), peak func() string) {
	t.Helper()
	own, _ := os.ReadFile("/proc/self/cgroup")
	parent, limit, most := "/sys/fs/cgroup", "memory.max", "memory.peak"
	for line := range strings.Lines(string(own)) { // version 1: beneath our own, whose limits hold too
		if path, ok := strings.CutPrefix(strings.TrimSpace(line[strings.Index(line, ":")+1:]), "memory:"); ok {
			parent, limit, most = filepath.Join("/sys/fs/cgroup/memory", path), "memory.limit_in_bytes", "memory.max_usage_in_bytes"
		}
	}
	dir, err := os.MkdirTemp(parent, "plugwire-test-")
	if err != nil {
		t.Skipf("no cgroup can be made: %v", err)
	}
	t.Cleanup(func() { // when the child has gone
		var err error
		for range 100 {
			if err = os.Remove(dir); err == nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Error(err)
	})
	if err := os.WriteFile(filepath.Join(dir, limit), fmt.Append(nil, cgroupBytes), 0); err != nil {
		t.Skipf("no cgroup with a memory limit can be made: %v", err)
	}
	add = func(pid int) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, pid), 0); err != nil {
			t.Skipf("the child cannot be put into a cgroup: %v", err)
		}
	}
	peak = func() string {
		b, _ := os.ReadFile(filepath.Join(dir, most))
		return strings.TrimSpace(string(b))
	}
	return add, peak
}

// T16: a server in a cgroup of 64 MiB survives a thousand hostile connections of
// every kind, and serves others meanwhile.
func TestT16ACrowdInACgroup(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector takes more memory than the group has")
	}
	watchdog(t)
	add, peak := newCgroup(t)
	addr := startCrowdChild(t, "crowd-memory", add)
	good := dial(t, addr, nil)
	for _, name := range []string{"DATA", "NOTIFY", "CALL"}[:longRun(1, 3)] {
		sends := crowdSends[name]
		conns := gather(t, addr, crowd, func(nc net.Conn) error {
			// What could not be let in, or was thrown out, is not the test's concern.
			joins(crowdHello(), sends(crowdTotal))(nc)
			return nil
		})
		for seed := range uint64(100) {
			if err := checkCall(background, good, 1000, seed); err != nil {
				t.Fatalf("%s: a good client's call: %v", name, err)
			}
		}
		worst := goodClients(t, addr, nil, 5)
		t.Logf("%s: beside %d hostile connections a good client connects within %v; at most %s bytes were used, of %d", name, len(conns), worst, peak(), cgroupBytes)
		for _, nc := range conns {
			nc.Close()
		}
	}
	until(t, "a large call after the crowds have left", func() bool { return checkCall(background, good, 1<<20, 1) == nil })
}

const fewDescriptors = 32

// T21: a server that has run out of descriptors serves again when some are free.
func TestT21DescriptorsRunOut(t *testing.T) {
	t.Parallel()
	watchdog(t)
	addr := startCrowdChild(t, "crowd-descriptors", nil)
	worst := time.Duration(0)
	for range longRun(1, 3) {
		var conns []*Conn
		for { // until one is left waiting
			ctx, cancel := context.WithTimeout(background, 2*time.Second) // in which the pause grows to its most
			c, err := Dial(ctx, addr, testConfig(nil))
			cancel()
			if err != nil {
				break
			}
			if conns = append(conns, c); len(conns) > fewDescriptors {
				t.Fatalf("%d connections with %d descriptors", len(conns), fewDescriptors)
			}
		}
		if len(conns) < fewDescriptors/4 { // each has a descriptor of its peer too
			t.Errorf("only %d connections with %d descriptors", len(conns), fewDescriptors)
		}
		if err := checkCall(background, conns[0], 100, 1); err != nil {
			t.Errorf("a call while there are no descriptors: %v", err)
		}
		// One more may have been accepted and refused for want of a second descriptor.
		rest := gather(t, addr, 8, says(nil))
		start := time.Now()
		closeBoth(conns...)
		for _, nc := range rest {
			nc.Close()
		}
		ctx, cancel := context.WithTimeout(background, adversaryPatience)
		c, err := Dial(ctx, addr, testConfig(nil))
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if err := checkCall(background, c, 100, 1); err != nil {
			t.Error(err)
		}
		worst = max(worst, time.Since(start))
		closeBoth(c)
	}
	t.Logf("when the clients have left, another is served within %v", worst)
	if worst > time.Second {
		t.Errorf("recovered after %v", worst)
	}
}
