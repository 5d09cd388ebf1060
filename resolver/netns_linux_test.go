package resolver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/plugwire/plugwire"
)

// childAddr, when set, has the test binary serve "who" there instead of testing.
const childAddr = "PLUGWIRE_RESOLVER_TEST_SERVE"

func init() {
	addr := os.Getenv(childAddr)
	if addr == "" {
		return
	}
	mux := plugwire.NewMux()
	mux.HandleFunc("who", func(context.Context, []byte) ([]byte, error) { return []byte(addr), nil })
	s := &plugwire.Server{Mux: mux, Config: &plugwire.Config{TCP: plugwire.TCPConfig{Insecure: true}}}
	fmt.Fprintln(os.Stderr, s.ListenAndServe(addr))
	os.Exit(1)
}

// A machine is a network namespace with a link to this one.
type machine struct{ name, link, ip string }

// newMachine makes machine n of this process: 198.18.n.2, seen from 198.18.n.1 (RFC 2544).
func newMachine(t *testing.T, n int) *machine {
	m := &machine{fmt.Sprintf("plugwire-%d-%d", os.Getpid(), n), fmt.Sprintf("pw%d-%d", os.Getpid(), n), fmt.Sprintf("198.18.%d.2", n)}
	t.Cleanup(func() {
		exec.Command("ip", "link", "del", m.link).Run()
		exec.Command("ip", "netns", "del", m.name).Run()
	})
	inside := fmt.Sprintf("pwi%d-%d", os.Getpid(), n)
	for _, line := range []string{
		"netns add " + m.name,
		"link add " + m.link + " type veth peer name " + inside,
		"link set " + inside + " netns " + m.name,
		fmt.Sprintf("addr add 198.18.%d.1/24 dev %s", n, m.link),
		"link set " + m.link + " up",
		fmt.Sprintf("-n %s addr add %s/24 dev %s", m.name, m.ip, inside),
		"-n " + m.name + " link set " + inside + " up",
	} {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Skipf("no network namespaces here: ip %s: %v: %s", line, err, out)
		}
	}
	return m
}

// run has a program run on the machine until the test ends.
func (m *machine) run(t *testing.T, env string, command ...string) *exec.Cmd {
	cmd := exec.Command("ip", append([]string{"netns", "exec", m.name}, command...)...)
	cmd.Env = append(os.Environ(), env)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", cmd, said.String())
		}
	})
	return cmd
}

// setLink connects or cuts off the machine.
func (m *machine) setLink(t *testing.T, state string) {
	t.Helper()
	if out, err := exec.Command("ip", "link", "set", m.link, state).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestPoolOverNetworkNamespaces has two servers on machines of their own, found by a
// name server on a third. One is cut off without a word, leaves the DNS, and comes
// back: idempotent calls go on all the time.
func TestPoolOverNetworkNamespaces(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can make network namespaces")
	}
	for _, program := range []string{"ip", "dnsmasq"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed: apt-get install iproute2 dnsmasq-base", program)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	a, b, dns := newMachine(t, 1), newMachine(t, 2), newMachine(t, 3)
	for _, m := range []*machine{a, b} {
		m.run(t, childAddr+"=tcp://"+m.ip+":7000", self)
	}
	hosts := filepath.Join(t.TempDir(), "hosts")
	say := func(machines ...*machine) {
		var text strings.Builder
		for _, m := range machines {
			fmt.Fprintln(&text, m.ip, "app.test")
		}
		if err := errors.Join(os.WriteFile(hosts, []byte(text.String()), 0o644), os.Chmod(filepath.Dir(hosts), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	say(a, b)
	server := dns.run(t, "", "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--listen-address="+dns.ip, "--bind-interfaces",
		"--no-resolv", "--no-hosts", "--addn-hosts="+hosts, "--pid-file=", "--log-facility=-", "--user=root")
	reload := func(machines ...*machine) {
		say(machines...)
		if err := server.Process.Signal(syscall.SIGHUP); err != nil { // ip has become the program
			t.Fatal(err)
		}
	}

	o := &Options{Refresh: 10 * time.Millisecond, Timeout: time.Second, Resolver: askAt(net.JoinHostPort(dns.ip, "53"))}
	pool := plugwire.NewPool(&plugwire.Config{
		TCP: plugwire.TCPConfig{Insecure: true}, KeepAlive: 300 * time.Millisecond, DialTimeout: time.Second, CloseTimeout: time.Second,
		Pool: plugwire.PoolConfig{Size: 2, MaxWait: 20 * time.Second, MaxBackOff: 100 * time.Millisecond, Resolver: DNS("app.test.:7000", o)},
	})
	defer pool.Close()
	if _, err := pool.Call(t.Context(), "who", nil); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var calls sync.WaitGroup
	defer calls.Wait()
	defer stop.Store(true)
	var good atomic.Int64
	for range 4 {
		calls.Go(func() {
			for !stop.Load() {
				if err := pool.Do(context.Background(), &plugwire.Call{Method: "who", Idempotent: true}); err != nil {
					t.Error(err)
					return
				}
				good.Add(1)
			}
		})
	}
	// conns waits for so many connections to a and b, and for calls to go on; -1: the
	// address is gone.
	conns := func(what string, wantA, wantB int) {
		t.Helper()
		before := good.Load()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			got := map[string]int{"tcp://" + a.ip + ":7000": -1, "tcp://" + b.ip + ":7000": -1}
			for _, e := range pool.Stats().Endpoints {
				got[e.Addr] = e.Conns
			}
			if got["tcp://"+a.ip+":7000"] == wantA && got["tcp://"+b.ip+":7000"] == wantB && good.Load() > before+100 {
				return
			}
			if time.Now().After(deadline) || t.Failed() {
				t.Fatalf("%s: connections %v, %d calls more", what, got, good.Load()-before)
			}
		}
	}
	conns("both are there", 1, 1)
	a.setLink(t, "down")
	conns("one is cut off", 0, 1)
	reload(b)
	conns("it has left the DNS", -1, 2)
	a.setLink(t, "up")
	reload(a, b)
	conns("it is back", 1, 1)
}
