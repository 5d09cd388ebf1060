package plugwire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"
)

// testTransports are what the matrix runs over: "pipe" is a custom transport
// whose connections, made by net.Pipe, have neither SyscallConn nor CloseWrite.
var testTransports = []string{localTransport, "tcp", "pipe"}

// overTransports runs the same body over each transport.
func overTransports(t *testing.T, body func(t *testing.T, transport string)) {
	for _, transport := range testTransports {
		t.Run(transport, func(t *testing.T) {
			watchdog(t)
			body(t, transport)
		})
	}
}

// watchdog panics, with all stacks, when the test hangs.
func watchdog(t testing.TB) {
	timer := time.AfterFunc(45*time.Second, func() {
		buf := make([]byte, 4<<20)
		fmt.Fprintf(os.Stderr, "%s hangs:\n\n%s\n", t.Name(), buf[:runtime.Stack(buf, true)])
		panic(t.Name() + " hangs")
	})
	t.Cleanup(func() { timer.Stop() })
}

// pipeTransport makes connections of net.Pipe, within the process.
type pipeTransport struct {
	mu        sync.Mutex
	listeners map[string]*pipeListener
}

type pipeListener struct {
	t     *pipeTransport
	addr  string
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

type pipeAddr string

func (a pipeAddr) Network() string { return "pipe" }
func (a pipeAddr) String() string  { return string(a) }

func newPipeTransport() *pipeTransport {
	return &pipeTransport{listeners: make(map[string]*pipeListener)}
}

func (p *pipeTransport) Listen(_ context.Context, addr string, _ *Config) (net.Listener, error) {
	l := &pipeListener{t: p, addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listeners[addr] = l
	return l, nil
}

func (p *pipeTransport) Dial(ctx context.Context, addr string, _ *Config) (net.Conn, error) {
	p.mu.Lock()
	l := p.listeners[addr]
	p.mu.Unlock()
	if l == nil {
		return nil, os.ErrNotExist
	}
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case nc := <-l.conns:
		return nc, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr(l.addr[len("pipe:"):]) }

// testConfig returns a copy of cfg, which may be nil, that knows the transport
// "pipe" and does not make tests wait long.
func testConfig(cfg *Config) *Config {
	var d Config
	if cfg != nil {
		d = *cfg
	}
	d.Custom = map[string]Transport{"pipe": testPipes}
	if d.CloseTimeout == 0 {
		d.CloseTimeout = 3 * time.Second
	}
	if testsOverTLS && !d.hasTLS() {
		d.TLS = testTLS()
	}
	return &d
}

// testsOverTLS has the connections of the tests that go over each transport run
// over TLS as well.
var testsOverTLS = os.Getenv("PLUGWIRE_TEST_TLS") != ""

// plainOnly skips a test that looks at the frames of a connection from below.
func plainOnly(t *testing.T) {
	if testsOverTLS {
		t.Skip("looks at what is written, which is encrypted now")
	}
}

var testPipes = newPipeTransport()

// listenAddr returns an address to listen on with a transport. Tests that need
// one transport say "unix" for the best of one machine: on Windows, named pipes.
func listenAddr(t testing.TB, transport string) string {
	switch transport {
	case "unix":
		transport = localTransport
	case "pipe":
		return "pipe:" + t.Name()
	}
	return transport + ":"
}

// netPair returns two ends of a fresh connection of the transport.
func netPair(t testing.TB, transport string, cfg *Config) (dialled, accepted net.Conn) {
	t.Helper()
	cfg = testConfig(cfg).withDefaults()
	addr := listenAddr(t, transport)
	tr, err := cfg.transportOf("listen", addr)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tr.Listen(context.Background(), addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan net.Conn, 1)
	go func() {
		nc, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		got <- nc
	}()
	dialled, err = tr.Dial(context.Background(), addrURI(l.Addr()), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if accepted = <-got; accepted == nil {
		t.FailNow()
	}
	return dialled, accepted
}

// pair returns both ends of a connection, each with its own Config (nil: the
// zero one) and so its own Mux. Which end dialled is decided at random, and
// printed when the test fails. Both are closed in the end.
func pair(t testing.TB, transport string, a, b *Config) (x, y *Conn) {
	t.Helper()
	dialled, accepted := netPair(t, transport, a)
	swap := rand.IntN(2) == 1
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the first end of the pair dialled: %v", !swap)
		}
	})
	if swap {
		y, x = openPair(t, dialled, accepted, b, a)
	} else {
		x, y = openPair(t, dialled, accepted, a, b)
	}
	return x, y
}

// openPair runs the handshake between two ends of a connection.
func openPair(t testing.TB, dialled, accepted net.Conn, a, b *Config) (x, y *Conn) {
	t.Helper()
	type opened struct {
		c   *Conn
		err error
	}
	other := make(chan opened, 1)
	go func() {
		c, err := open(context.Background(), accepted, false, "", testConfig(b).withDefaults())
		other <- opened{c, err}
	}()
	x, err := NewConn(context.Background(), dialled, testConfig(a))
	o := <-other
	if err != nil || o.err != nil {
		t.Fatalf("handshake: %v, %v", err, o.err)
	}
	t.Cleanup(func() { closeBoth(x, o.c) })
	return x, o.c
}

// closeBoth closes two ends and waits until nothing of them is left to happen.
func closeBoth(conns ...*Conn) {
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() { c.Close(); <-c.Done() })
	}
	wg.Wait()
}

// until waits until cond holds, and fails the test when it does not in time.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(200 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// receive waits for a channel.
func receive[T any](t testing.TB, what string, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(20 * time.Second):
		t.Fatalf("not in time: %s", what)
	}
	return v
}

// fill makes n bytes that tell one seed from another, wherever one looks.
func fill(n int, seed uint64) []byte {
	b := make([]byte, (n+7)/8*8)
	x := seed*0x9e3779b97f4a7c15 + 1
	for i := 0; i < len(b); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(b[i:], x)
	}
	return b[:n]
}

// scaled is how many rounds of n are worth their time under the race detector.
func scaled(n int) int {
	switch {
	case longTests:
		return n
	case raceEnabled:
		return max(n/4, 1)
	}
	return max(n/2, 1)
}

// sealed makes a message of n bytes, at least 12, that unseal recognises: seed,
// length, and filling from the seed.
func sealed(n int, seed uint64) []byte {
	n = max(n, 12)
	b := make([]byte, 0, n)
	b = binary.LittleEndian.AppendUint64(b, seed)
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	return append(b, fill(n-12, seed)...)
}

// unseal returns a message's seed, or why it is not one that sealed has made.
func unseal(b []byte) (seed uint64, err error) {
	if len(b) < 12 {
		return 0, fmt.Errorf("message of %d bytes", len(b))
	}
	seed = binary.LittleEndian.Uint64(b)
	if n := binary.LittleEndian.Uint32(b[8:]); int(n) != len(b) {
		return seed, fmt.Errorf("message %d of %d bytes has %d", seed, n, len(b))
	}
	if !bytes.Equal(b[12:], fill(len(b)-12, seed)) {
		return seed, fmt.Errorf("message %d of %d bytes was changed", seed, len(b))
	}
	return seed, nil
}

func writeFile(t testing.TB, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// serves returns a Config that serves m.
func serves(m *Mux) *Config { return &Config{Mux: m} }

// echoMux returns a Mux with "echo", and "check", which also verifies the
// request, and "block", which waits until its context or the channel ends.
func echoMux(unblock <-chan struct{}) *Mux {
	m := NewMux()
	m.Handle("echo", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		return append(reply, r.Payload()...), nil
	}))
	m.Handle("check", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		if _, err := unseal(r.Payload()); err != nil {
			return reply, err
		}
		return append(reply, r.Payload()...), nil
	}))
	m.Handle("block", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		select {
		case <-unblock:
			return append(reply, r.Payload()...), nil
		case <-r.Context().Done():
			return reply, r.Context().Err()
		}
	}))
	return m
}

// checkCall makes a sealed call of n bytes and verifies the reply.
func checkCall(ctx context.Context, c Caller, n int, seed uint64) error {
	req := sealed(n, seed)
	reply, err := c.Call(ctx, "check", req)
	if err == nil && !bytes.Equal(reply, req) {
		_, why := unseal(reply)
		err = fmt.Errorf("reply to %d of %d bytes has %d and is wrong: %v", seed, n, len(reply), why)
	}
	return err
}

// accounts fails the test unless everything that c counts has come back to
// nothing: no slot, request byte, handler or wait is lost.
func accounts(t testing.TB, conns ...*Conn) {
	t.Helper()
	for _, c := range conns {
		var last string
		state := func() string {
			c.out.Lock()
			defer c.out.Unlock()
			if int(c.used) == len(c.free) && c.reserved == 0 && c.servingBytes.Load() == 0 &&
				c.servingCount.Load() == 0 && c.expecting.Load() == 0 && c.large.sent == 0 && c.large.held == 0 {
				return ""
			}
			return fmt.Sprintf("%d of %d slots free, %d bytes reserved, serving %d calls of %d bytes, %d expecting, large messages: %d sent, %d held",
				len(c.free), c.used, c.reserved, c.servingCount.Load(), c.servingBytes.Load(), c.expecting.Load(), c.large.sent, c.large.held)
		}
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			if last = state(); last == "" {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("left over: %s", last)
			}
		}
		c.out.Lock()
		seen := make(map[uint32]bool)
		for _, id := range c.free {
			if seen[id] {
				t.Errorf("slot %d is free twice", id)
			}
			seen[id] = true
		}
		c.out.Unlock()
	}
}

// wantCode fails the test unless err has the code and says so of NotRun.
func wantCode(t testing.TB, err error, code Code, notRun bool) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Code != code || NotRun(err) != notRun {
		t.Errorf("error %v (code %v, NotRun %v), want code %v, NotRun %v", err, CodeOf(err), NotRun(err), code, notRun)
	}
}
