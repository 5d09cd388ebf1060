// There are no signals on js.

//go:build !js

package resolver

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/plugwire/plugwire"
)

// fastLooks has tests wait no longer than they must.
const fastLooks = time.Millisecond

// A zone is what a name server of a test answers: the records of each name.
type zone struct {
	mu      sync.Mutex
	hosts   map[string][]netip.Addr
	srv     map[string][]net.SRV
	silent  bool
	queries int
	halves  map[string]half
}

// A half is what a name had when one of its two types was asked for. The other is
// answered from it, so that no lookup meets a change half way.
type half struct {
	kind  uint16
	ips   []netip.Addr
	known bool
}

func (z *zone) change(f func()) {
	z.mu.Lock()
	defer z.mu.Unlock()
	f()
}

// The types of records, and other numbers of RFC 1035, 3596 and 2782.
const (
	typeA, typeAAAA, typeSRV = 1, 28, 33
	classIN                  = 1
	nameError                = 3
)

// serve answers on a loopback port, and returns a Resolver that asks there.
func (z *zone) serve(t *testing.T) *net.Resolver {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	z.halves = map[string]half{}
	done := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-done })
	go func() {
		defer close(done)
		b := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if answer := z.answer(b[:n]); answer != nil {
				conn.WriteTo(answer, from)
			}
		}
	}()
	return askAt(conn.LocalAddr().String())
}

// askAt returns a Resolver that asks the name server at addr.
func askAt(addr string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}
}

// answer lays out the answer to a query of one question.
func (z *zone) answer(query []byte) []byte {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.queries++
	if len(query) < 12 || z.silent {
		return nil
	}
	var labels []string
	end := 12
	for end < len(query) && query[end] != 0 {
		labels = append(labels, string(query[end+1:end+1+int(query[end])]))
		end += 1 + int(query[end])
	}
	end += 5 // the root, type and class
	name, kind := strings.Join(labels, ".")+".", binary.BigEndian.Uint16(query[end-4:])

	records, known := z.records(name, kind)
	flags := uint16(0x8580) // an answer, authoritative, recursion
	if !known {
		flags |= nameError
	}
	out := append([]byte(nil), query[:2]...)
	for _, v := range []uint16{flags, 1, uint16(len(records)), 0, 0} {
		out = binary.BigEndian.AppendUint16(out, v)
	}
	out = append(out, query[12:end]...)
	for _, data := range records {
		out = append(out, 0xc0, 12) // the question's name
		for _, v := range []uint16{kind, classIN, 0, 1, uint16(len(data))} {
			out = binary.BigEndian.AppendUint16(out, v)
		}
		out = append(out, data...)
	}
	return out
}

func (z *zone) records(name string, kind uint16) (records [][]byte, known bool) {
	ips, known := z.hosts[name]
	if kind != typeSRV {
		first, asked := z.halves[name]
		if asked && first.kind != kind {
			ips, known = first.ips, first.known
			delete(z.halves, name)
		} else {
			z.halves[name] = half{kind, ips, known}
		}
	}
	for _, ip := range ips {
		if ip.Is4() == (kind == typeA) && kind != typeSRV {
			records = append(records, ip.AsSlice())
		}
	}
	srv, isSRV := z.srv[name]
	for _, r := range srv {
		if kind != typeSRV {
			break
		}
		var b []byte
		for _, v := range []uint16{r.Priority, r.Weight, r.Port} {
			b = binary.BigEndian.AppendUint16(b, v)
		}
		for label := range strings.SplitSeq(strings.TrimSuffix(r.Target, "."), ".") {
			b = append(append(b, byte(len(label))), label...)
		}
		if r.Target == "." {
			b = b[:len(b)-1]
		}
		records = append(records, append(b, 0))
	}
	return records, known || isSRV
}

// watched collects what a resolver says.
type watched struct {
	t       *testing.T
	updates chan []string
	ended   chan error
	stop    context.CancelFunc
}

func watch(t *testing.T, r plugwire.Resolver) *watched {
	w := &watched{t: t, updates: make(chan []string, 100), ended: make(chan error, 1)}
	var ctx context.Context
	ctx, w.stop = context.WithCancel(context.Background())
	go func() { w.ended <- r.Watch(ctx, func(addrs []string) { w.updates <- addrs }) }()
	t.Cleanup(w.stop)
	return w
}

// wants waits for an update.
func (w *watched) wants(addrs ...string) {
	w.t.Helper()
	select {
	case got := <-w.updates:
		if !slices.Equal(got, addrs) {
			w.t.Errorf("addresses %q, want %q", got, addrs)
		}
	case err := <-w.ended:
		w.t.Fatalf("it ended: %v", err)
	case <-time.After(20 * time.Second):
		w.t.Fatalf("no update, want %q", addrs)
	}
}

// fails waits for Watch's error.
func (w *watched) fails(text string) {
	w.t.Helper()
	select {
	case err := <-w.ended:
		if err == nil || !strings.Contains(err.Error(), text) {
			w.t.Errorf("%v, want %q in it", err, text)
		}
	case <-time.After(20 * time.Second):
		w.t.Fatalf("it goes on, want %q", text)
	}
	for len(w.updates) > 0 {
		w.t.Errorf("also %q", <-w.updates)
	}
}

func ips(texts ...string) (addrs []netip.Addr) {
	for _, text := range texts {
		addrs = append(addrs, netip.MustParseAddr(text))
	}
	return addrs
}

func TestDNS(t *testing.T) {
	z := &zone{hosts: map[string][]netip.Addr{"app.test.": ips("10.0.0.2", "10.0.0.1", "fd00::1")}}
	o := &Options{Refresh: fastLooks, Resolver: z.serve(t)}
	w := watch(t, DNS("app.test.:7000", o))
	w.wants("tcp://10.0.0.1:7000", "tcp://10.0.0.2:7000", "tcp://[fd00::1]:7000")
	z.change(func() { slices.Reverse(z.hosts["app.test."]) }) // no change
	z.change(func() { z.queries = 0 })
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		n := 0
		if z.change(func() { n = z.queries }); n > 4 {
			break
		} else if time.Now().After(deadline) {
			t.Fatal("it does not look again")
		}
	}
	z.change(func() { z.hosts["app.test."] = ips("10.0.0.3") })
	w.wants("tcp://10.0.0.3:7000")
	z.change(func() { delete(z.hosts, "app.test.") })
	w.fails("no such host")

	w = watch(t, DNS("app.test.:7000", o))
	w.fails("no such host")
	watch(t, DNS("app.test.", o)).fails("missing port")
	watch(t, DNS("app.test.:http", o)).fails("not a number")
	w = watch(t, DNS("127.0.0.1:7000", nil)) // needs no name server
	w.wants("tcp://127.0.0.1:7000")
	w.stop()
	if err := <-w.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
	z.change(func() { z.silent = true })
	watch(t, DNS("app.test.:7000", &Options{Timeout: 20 * time.Millisecond, Resolver: o.Resolver})).fails("timeout")
}

func TestSRV(t *testing.T) {
	const name = "_plugwire._tcp.app.test."
	z := &zone{
		hosts: map[string][]netip.Addr{"a.test.": ips("10.0.0.1"), "b.test.": ips("10.0.0.2", "fd00::2"), "backup.test.": ips("10.0.0.9")},
		srv: map[string][]net.SRV{name: {
			{Target: "a.test.", Port: 7001, Priority: 1, Weight: 10},
			{Target: "b.test.", Port: 7002, Priority: 1},
			{Target: "backup.test.", Port: 7009, Priority: 2},
		}},
	}
	o := &Options{Refresh: fastLooks, Resolver: z.serve(t)}
	w := watch(t, SRV(name, o))
	w.wants("tcp://10.0.0.1:7001", "tcp://10.0.0.2:7002", "tcp://[fd00::2]:7002")
	z.change(func() { delete(z.hosts, "a.test.") }) // the other one is still there
	w.wants("tcp://10.0.0.2:7002", "tcp://[fd00::2]:7002")
	z.change(func() { delete(z.hosts, "b.test.") })
	w.fails("no such host")
	z.change(func() { z.srv[name] = []net.SRV{{Target: "."}} })
	watch(t, SRV(name, o)).wants()
	watch(t, SRV("_plugwire._tcp.other.test.", o)).fails("no such host")
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "addresses")
	o := &Options{Refresh: fastLooks}
	watch(t, File(path, o)).fails("no such file")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# servers\n\n tcp://10.0.0.2:7000 \r\nunix:///run/app.sock\ntcp://10.0.0.2:7000\n")
	w := watch(t, File(path, o))
	w.wants("tcp://10.0.0.2:7000", "unix:///run/app.sock")
	for i := range 20 { // of the same size, and perhaps within the same tick of the file system's clock
		write(fmt.Sprintf("tcp://10.0.0.%d:70", 10+i))
		for {
			got := <-w.updates
			if len(got) == 1 && got[0] == fmt.Sprintf("tcp://10.0.0.%d:70", 10+i) {
				break
			}
		}
	}
	// Another file takes its place, with the time of the old one.
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	next := path + ".next"
	if err := errors.Join(os.WriteFile(next, []byte("tcp://10.0.1.99:70"), 0o600),
		os.Chtimes(next, info.ModTime(), info.ModTime()), os.Rename(next, path)); err != nil {
		t.Fatal(err)
	}
	w.wants("tcp://10.0.1.99:70")
	write("tcp://10.0.0.1:7000\nnonsense\n")
	for { // unless the file was seen while it was empty
		select {
		case addrs := <-w.updates:
			if len(addrs) > 0 {
				t.Errorf("half a file: %q", addrs)
			}
			continue
		case err := <-w.ended:
			if want := "addresses:2: \"nonsense\" is no address"; err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("nonsense goes unnoticed")
		}
		break
	}
	write(strings.Repeat("#", maxFile+1))
	watch(t, File(path, o)).fails("more than")
}

// TestAFileIsReadWhenItHasChanged and not else.
func TestAFileIsReadWhenItHasChanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "addresses")
	if err := os.WriteFile(path, []byte("tcp://10.0.0.1:70"), 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	w := &watchedFile{path: path}
	look := func() string {
		t.Helper()
		addrs, err := w.look(context.Background(), nil)
		if err != nil || len(addrs) != 1 {
			t.Fatal(addrs, err)
		}
		return addrs[0]
	}
	look()
	// What the file system calls unchanged is not read.
	if err := errors.Join(os.WriteFile(path, []byte("tcp://10.0.0.2:70"), 0o600), os.Chtimes(path, old, old)); err != nil {
		t.Fatal(err)
	}
	if got := look(); got != "tcp://10.0.0.1:70" {
		t.Errorf("%s was read", got)
	}
	if err := os.Chtimes(path, old, old.Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if got := look(); got != "tcp://10.0.0.2:70" {
		t.Errorf("%s, after it was changed", got)
	}
}

// namedServer serves "who" on loopback.
func namedServer(t *testing.T, ip string, port int) {
	mux := plugwire.NewMux()
	mux.HandleFunc("who", func(context.Context, []byte) ([]byte, error) { return []byte(ip), nil })
	s := &plugwire.Server{Mux: mux}
	l, err := s.Listen(fmt.Sprintf("tcp://%s:%d", ip, port))
	if err != nil {
		t.Skipf("no second loopback address here: %v", err)
	}
	served := make(chan struct{})
	go func() { defer close(served); s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-served })
}

// freePort returns a port that is free on all loopback addresses, so far.
func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// moves has a Pool with that resolver begin at 127.0.0.1 and, after change, go to
// 127.0.0.2.
func moves(t *testing.T, r plugwire.Resolver, change func()) {
	t.Helper()
	p := plugwire.NewPool(&plugwire.Config{Pool: plugwire.PoolConfig{Resolver: r, MaxBackOff: 10 * time.Millisecond}})
	t.Cleanup(func() { p.Close() })
	who := func() string {
		b, err := p.Call(t.Context(), "who", nil)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if got := who(); got != "127.0.0.1" {
		t.Fatalf("at first %s answers", got)
	}
	change()
	for deadline := time.Now().Add(20 * time.Second); who() != "127.0.0.2"; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the Pool does not move: %+v", p.Stats().Endpoints)
		}
	}
}

func TestPoolOverDNS(t *testing.T) {
	port := freePort(t)
	namedServer(t, "127.0.0.1", port)
	namedServer(t, "127.0.0.2", port)
	z := &zone{hosts: map[string][]netip.Addr{"app.test.": ips("127.0.0.1")}}
	r := DNS(fmt.Sprintf("app.test.:%d", port), &Options{Refresh: fastLooks, Resolver: z.serve(t)})
	moves(t, r, func() { z.change(func() { z.hosts["app.test."] = ips("127.0.0.2") }) })
}

// TestPoolOverDnsmasq is the same with a name server that others wrote.
func TestPoolOverDnsmasq(t *testing.T) {
	path, err := exec.LookPath("dnsmasq")
	if err != nil {
		t.Skip("dnsmasq is not installed: apt-get install dnsmasq-base")
	}
	dns, port := freePort(t), freePort(t)
	namedServer(t, "127.0.0.1", port)
	namedServer(t, "127.0.0.2", port)
	hosts := filepath.Join(t.TempDir(), "hosts")
	say := func(ip string) {
		if err := os.WriteFile(hosts, []byte(ip+" app.test\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	say("127.0.0.1")
	if err := os.Chmod(filepath.Dir(hosts), 0o755); err != nil { // it runs as another user when root starts it
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.Command(path, "--keep-in-foreground", "--conf-file=/dev/null", "--port="+fmt.Sprint(dns), "--listen-address=127.0.0.1",
		"--bind-interfaces", "--no-resolv", "--no-hosts", "--addn-hosts="+hosts, "--pid-file=", "--log-facility=-", "--user=root",
		fmt.Sprintf("--srv-host=_plugwire._tcp.app.test,app.test,%d,1", port))
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Skipf("dnsmasq does not start: %v", err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})
	o := &Options{Refresh: 5 * time.Millisecond, Resolver: askAt(fmt.Sprintf("127.0.0.1:%d", dns))}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := o.Resolver.LookupHost(t.Context(), "app.test."); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	for name, r := range map[string]plugwire.Resolver{
		"A": DNS(fmt.Sprintf("app.test.:%d", port), o), "SRV": SRV("_plugwire._tcp.app.test.", o),
	} {
		t.Run(name, func(t *testing.T) {
			reload := func(ip string) {
				say(ip)
				if err := cmd.Process.Signal(syscall.SIGHUP); err != nil { // it reads the file again
					t.Fatal(err)
				}
			}
			moves(t, r, func() { reload("127.0.0.2") })
			reload("127.0.0.1")
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				if ips, _ := o.Resolver.LookupHost(t.Context(), "app.test."); slices.Equal(ips, []string{"127.0.0.1"}) {
					break
				} else if time.Now().After(deadline) {
					t.Fatalf("%q", ips)
				}
			}
		})
	}
}
