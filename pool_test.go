package plugwire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A poolServer is a server at an address where another can take its place.
type poolServer struct {
	*Server
	addr   string
	served chan struct{}
}

// poolAddr returns an address for servers of a test that come and go: of a Unix
// socket, or where there are none of a pipe.
func poolAddr(t testing.TB, name string) string {
	if runtime.GOOS == "windows" {
		return "pipe:" + t.Name() + name
	}
	return "unix://" + filepath.Join(t.TempDir(), name)
}

// startPoolServer serves m at addr.
func startPoolServer(t testing.TB, addr string, m *Mux) *poolServer {
	t.Helper()
	s := &poolServer{Server: &Server{Mux: m, Config: testConfig(nil)}, addr: addr, served: make(chan struct{})}
	l, err := s.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	go func() { defer close(s.served); s.Serve(l) }()
	t.Cleanup(s.kill)
	return s
}

// kill ends the server at once, as seen by the other side.
func (s *poolServer) kill() { s.Close(); <-s.served }

// drain ends it in order.
func (s *poolServer) drain(t testing.TB) {
	if err := s.Shutdown(background); err != nil {
		t.Errorf("Shutdown of a server: %v", err)
	}
	<-s.served
}

// newTestPool returns a Pool that is closed in the end.
func newTestPool(t testing.TB, cfg *Config, addrs ...string) *Pool {
	p := NewPool(testConfig(cfg), addrs...)
	t.Cleanup(func() {
		p.Close()
		if s := p.Stats(); s.Open+s.Draining+s.Dialing+s.Waiting+s.InFlight != 0 {
			t.Errorf("after Close: %+v", s)
		}
	})
	return p
}

func poolConfig(c PoolConfig) *Config { return &Config{Pool: c} }

// opens makes calls side by side until the Pool has n connections.
func opens(t testing.TB, p *Pool, n int) {
	t.Helper()
	until(t, fmt.Sprintf("%d connections", n), func() bool {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if _, err := p.Call(background, "echo", nil); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		return p.Stats().Open == n || t.Failed()
	})
}

// TestPoolIsACaller: every form of a call, as on a connection.
func TestPoolIsACaller(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		m := echoMux(nil)
		notes := make(chan string, 1)
		m.HandleFunc("note", func(_ context.Context, msg []byte) ([]byte, error) { notes <- string(msg); return nil, nil })
		m.HandleStream("stream", func(s *Stream) error {
			b, err := s.Recv()
			if err == nil {
				err = s.Send(b)
			}
			return err
		})
		server := &Server{Mux: m, Config: testConfig(nil)}
		l, err := server.Listen(map[string]string{"unix": "unix:", "npipe": "npipe:", "tcp": "tcp:", "pipe": "pipe:" + t.Name()}[transport])
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan struct{})
		go func() { defer close(served); server.Serve(l) }()
		t.Cleanup(func() { server.Close(); <-served })
		p := newTestPool(t, poolConfig(PoolConfig{Size: 2}), addrURI(l.Addr()))
		if s := p.Stats(); s.Open+s.Dialing != 0 || s.Dials != 0 {
			t.Errorf("before the first call: %+v", s)
		}
		parallelChecks(t, p, 200)
		for _, n := range []int{1, 300 << 10} {
			if err := checkCall(background, p, n, uint64(n)); err != nil {
				t.Error(err)
			}
		}
		call := Call{Method: "echo", Request: []byte("world"), Reply: []byte("hello, ")}
		if err := p.Do(background, &call); err != nil || string(call.Reply) != "hello, world" {
			t.Errorf("%q, %v", call.Reply, err)
		}
		if err := p.DoAll(background, nil); err != nil {
			t.Error(err)
		}
		calls := []*Call{{Method: "echo", Request: []byte("a")}, {Method: "none"}, {Method: "echo", Request: []byte("b"), Reply: []byte("a")}}
		err = p.DoAll(background, calls)
		wantCode(t, err, Unimplemented, true)
		if string(calls[0].Reply) != "a" || calls[0].Err != nil || calls[1].Err != err || string(calls[2].Reply) != "ab" || calls[2].Err != nil {
			t.Errorf("%+v %+v %+v", calls[0], calls[1], calls[2])
		}
		if err := p.Notify(background, "note", []byte("x")); err != nil || receive(t, "the message", notes) != "x" {
			t.Error(err)
		}
		s, err := p.OpenStream(background, "stream")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send([]byte("y")); err != nil {
			t.Error(err)
		}
		if b, err := s.Recv(); string(b) != "y" {
			t.Errorf("%q, %v", b, err)
		}
		s.Close()
		if s := p.Stats(); s.Open < 1 || s.Open > 2 || s.Draining != 0 || s.CallsSent < 200 || s.Dials < 1 || s.Retried != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// gateTransport is a transport whose dials wait until they are let through, to
// another transport or to an error.
type gateTransport struct {
	Transport
	dials atomic.Int32
	gate  chan error // nil: dial
}

func (g *gateTransport) Dial(ctx context.Context, addr string, cfg *Config) (net.Conn, error) {
	g.dials.Add(1)
	if g.gate != nil {
		select {
		case err := <-g.gate:
			if err != nil {
				return nil, err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return g.Transport.Dial(ctx, addr, cfg)
}

// withPipes is cfg whose "pipe" addresses are dialled by tr.
func withPipes(cfg *Config, tr Transport) *Config {
	d := *testConfig(cfg)
	d.Custom = map[string]Transport{"pipe": tr}
	return &d
}

func closedPool(t testing.TB, p *Pool) *Pool {
	t.Cleanup(func() { p.Close() })
	return p
}

// TestPoolDialOutlivesItsCaller: who gives up takes the dial from nobody else.
func TestPoolDialOutlivesItsCaller(t *testing.T) {
	addr := "pipe:" + t.Name()
	startPoolServer(t, addr, echoMux(nil))
	tr := &gateTransport{Transport: testPipes, gate: make(chan error)}
	p := closedPool(t, NewPool(withPipes(nil, tr), addr))
	ctx, cancel := context.WithCancel(background)
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { _, err := p.Call(ctx, "echo", nil); first <- err }()
	until(t, "the dial", func() bool { return tr.dials.Load() == 1 })
	go func() { _, err := p.Call(background, "echo", nil); second <- err }()
	until(t, "two to wait", func() bool { return p.Stats().Waiting == 2 })
	cancel()
	wantCode(t, receive(t, "the first caller", first), Canceled, true)
	tr.gate <- nil
	if err := receive(t, "the second caller", second); err != nil || tr.dials.Load() != 1 {
		t.Errorf("%v after %d dials", err, tr.dials.Load())
	}
}

// TestPoolCallersWaitForAConnection: how long, how many, and what they are told.
func TestPoolCallersWaitForAConnection(t *testing.T) {
	t.Parallel()
	refused := errors.New("refused in a test")
	failing := func(c PoolConfig, err error) (*Pool, *gateTransport) {
		tr := &gateTransport{Transport: testPipes, gate: make(chan error, 1000)}
		for range cap(tr.gate) {
			tr.gate <- err
		}
		return closedPool(t, NewPool(withPipes(poolConfig(c), tr), "pipe:a", "pipe:b")), tr
	}
	t.Run("MaxWait", func(t *testing.T) {
		p, _ := failing(PoolConfig{MaxWait: 80 * time.Millisecond}, refused)
		start := time.Now()
		_, err := p.Call(background, "echo", nil)
		wantCode(t, err, Unavailable, true)
		if d := time.Since(start); d < 80*time.Millisecond || !errors.Is(err, refused) {
			t.Errorf("after %v: %v", d, err)
		}
		if s := p.Stats(); s.DialErrors < 2 || s.Open != 0 || s.Waiting != 0 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("context", func(t *testing.T) {
		p, _ := failing(PoolConfig{}, refused)
		ctx, cancel := context.WithTimeout(background, 80*time.Millisecond)
		defer cancel()
		all := []*Call{{Method: "echo"}, {Method: "echo2"}}
		err := p.DoAll(ctx, all)
		wantCode(t, err, DeadlineExceeded, true)
		if !errors.Is(err, refused) || !errors.Is(err, context.DeadlineExceeded) || all[0].Err != err || all[1].Err.(*Error).Addr != "echo2" {
			t.Errorf("%v, %+v", err, all)
		}
		wantCode(t, p.Notify(ctx, "echo", nil), DeadlineExceeded, true)
		_, err = p.OpenStream(ctx, "echo")
		wantCode(t, err, DeadlineExceeded, true)
	})
	t.Run("hopeless", func(t *testing.T) {
		p, _ := failing(PoolConfig{}, &Error{Code: PermissionDenied, Op: "dial", Err: refused})
		for range 2 { // the second while the address is left alone
			_, err := p.Call(background, "echo", nil)
			wantCode(t, err, PermissionDenied, true)
			if !errors.Is(err, refused) {
				t.Error(err)
			}
		}
		wantCode(t, NewPool(nil).Do(background, &Call{Method: "echo"}), InvalidArgument, true)
	})
	t.Run("MaxWaiters", func(t *testing.T) {
		p, _ := failing(PoolConfig{MaxWaiters: 3}, refused)
		ended := make(chan error, 3)
		for range 3 {
			go func() { _, err := p.Call(background, "echo", nil); ended <- err }()
		}
		until(t, "three to wait", func() bool { return p.Stats().Waiting == 3 })
		_, err := p.Call(background, "echo", nil)
		wantCode(t, err, ResourceExhausted, true)
		p.Close()
		for range 3 {
			err := receive(t, "a caller", ended)
			wantCode(t, err, Unavailable, true)
			if !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}
	})
}

// TestPoolBacksOff: failing addresses are left alone for a growing time, and
// nothing is dialled for nobody for longer than IdleTime.
func TestPoolBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var at []time.Duration
		start := time.Now()
		tr := dialFunc(func(context.Context) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			at = append(at, time.Since(start))
			return nil, errors.New("refused in a test")
		})
		cfg := poolConfig(PoolConfig{MaxBackOff: time.Second, MaxWait: time.Minute, IdleTime: 10 * time.Second})
		p := NewPool(withPipes(cfg, tr), "pipe:x")
		_, err := p.Call(background, "echo", nil)
		wantCode(t, err, Unavailable, true)
		time.Sleep(time.Hour)
		synctest.Wait()
		if s := p.Stats(); s.Dialing != 0 || s.DialErrors != uint64(len(at)) {
			t.Errorf("%+v", s)
		}
		var gaps []time.Duration
		for i := range at[1:] {
			gap := at[i+1] - at[i]
			most := min(leastBackOff<<min(i, 10), time.Second)
			if gap < most/2 || gap > most {
				t.Errorf("failure %d was followed by %v, want %v to %v", i+1, gap, most/2, most)
			}
			gaps = append(gaps, gap)
		}
		slices.Sort(gaps)
		if len(slices.Compact(gaps)) < len(at)/2 {
			t.Errorf("no jitter: %v", gaps)
		}
		if last := at[len(at)-1]; last < time.Minute || last > 72*time.Second {
			t.Errorf("dialled last after %v", last)
		}
		p.Close()
	})
}

type dialFunc func(ctx context.Context) (net.Conn, error)

func (f dialFunc) Dial(ctx context.Context, _ string, _ *Config) (net.Conn, error) { return f(ctx) }
func (f dialFunc) Listen(context.Context, string, *Config) (net.Listener, error) {
	return nil, errors.ErrUnsupported
}

// TestPoolSpreads over addresses, and what is lost on one that fails comes back.
func TestPoolSpreads(t *testing.T) {
	watchdog(t)
	var addrs []string
	var servers []*poolServer
	for i := range 3 {
		addrs = append(addrs, poolAddr(t, fmt.Sprint(i)))
		servers = append(servers, startPoolServer(t, addrs[i], echoMux(nil)))
	}
	p := newTestPool(t, poolConfig(PoolConfig{Size: 6, MaxBackOff: 20 * time.Millisecond}), addrs...)
	opens(t, p, 6)
	counts := func() []int {
		n := make([]int, 3)
		for i, s := range servers {
			s.mu.Lock()
			n[i] = len(s.conns)
			s.mu.Unlock()
		}
		return n
	}
	until(t, "two at each", func() bool { return slices.Equal(counts(), []int{2, 2, 2}) }) // a dialler is through first
	servers[1].kill()
	until(t, "two to be missed", func() bool { return p.Stats().Open == 4 })
	parallelChecks(t, p, 100)
	servers[1] = startPoolServer(t, addrs[1], echoMux(nil))
	until(t, "all to be back", func() bool { return slices.Equal(counts(), []int{2, 2, 2}) })
}

// TestPoolPicksTheLeastBusy, for calls and for streams, also when there are many.
func TestPoolPicksTheLeastBusy(t *testing.T) {
	t.Parallel()
	watchdog(t)
	for _, size := range []int{4, 2 * lookAtAll} {
		unblock := make(chan struct{})
		m := echoMux(unblock)
		m.HandleStream("wait", func(s *Stream) error { <-s.Context().Done(); return nil })
		server := startPoolServer(t, poolAddr(t, "s"), m)
		p := newTestPool(t, poolConfig(PoolConfig{Size: size}), server.addr)
		var wg sync.WaitGroup
		for i := range 10 * size {
			wg.Go(func() {
				if _, err := p.Call(background, "block", nil); err != nil {
					t.Error(err)
				}
			})
			until(t, "a call", func() bool { return p.Stats().InFlight == i+1 && p.Stats().Dialing == 0 })
		}
		spread := func() (least, most int) {
			least = 1 << 30
			for _, pc := range *p.ready.Load() {
				n := pc.load(true)
				least, most = min(least, n), max(most, n)
			}
			return least, most
		}
		if least, most := spread(); p.Stats().Open != size || most-least > size {
			t.Errorf("of %d connections: %d to %d in flight", p.Stats().Open, least, most)
		}
		close(unblock)
		wg.Wait()
		for range 10 * size {
			s, err := p.OpenStream(background, "wait")
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
		}
		if least, most := spread(); most-least > size/2 {
			t.Errorf("%d to %d streams", least, most)
		}
	}
}

// TestPoolGoAwayMovesWork: a server that drains gets nothing new, what it has is
// finished, and nothing fails.
func TestPoolGoAwayMovesWork(t *testing.T) {
	watchdog(t)
	unblock := make(chan struct{})
	entered := make(chan int, 1)
	served := make([]atomic.Int32, 2)
	addrs := []string{poolAddr(t, "0"), poolAddr(t, "1")}
	servers := make([]*poolServer, 2)
	for i := range servers {
		m := echoMux(nil)
		m.HandleFunc("slow", func(context.Context, []byte) ([]byte, error) {
			entered <- i
			<-unblock
			return []byte{byte(i)}, nil
		})
		m.Use(func(next Handler) Handler {
			return HandlerFunc(func(r *Request, reply []byte) ([]byte, error) { served[i].Add(1); return next.ServeCall(r, reply) })
		})
		servers[i] = startPoolServer(t, addrs[i], m)
	}
	p := newTestPool(t, poolConfig(PoolConfig{Size: 2}), addrs...)
	opens(t, p, 2)
	slow := make(chan []byte, 1)
	go func() {
		reply, err := p.Call(background, "slow", nil)
		if err != nil {
			t.Error(err)
		}
		slow <- reply
	}()
	i := receive(t, "the handler", entered)
	down := make(chan struct{})
	go func() { defer close(down); servers[i].drain(t) }()
	until(t, "the connection to drain", func() bool { return p.Stats().Draining == 1 })
	before := served[i].Load()
	parallelChecks(t, p, 200)
	if n := served[i].Load(); n != before {
		t.Errorf("the draining server got %d calls", n-before)
	}
	close(unblock)
	if reply := receive(t, "the reply", slow); !bytes.Equal(reply, []byte{byte(i)}) {
		t.Errorf("%v", reply)
	}
	receive(t, "Shutdown", down)
}

// TestPoolRunsAgainWhatHasNotRun: on another connection, the same request, a
// bounded number of times, and not what would be refused everywhere.
func TestPoolRunsAgainWhatHasNotRun(t *testing.T) {
	watchdog(t)
	var seen, refusals atomic.Int32
	var code atomic.Uint32
	md := Metadata{"k": "v"}
	refuse := func(next Handler) Handler {
		return HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			if r.Method() != "work" {
				return next.ServeCall(r, reply)
			}
			if n := seen.Add(1); string(r.Payload()) != "request" || r.Metadata()["k"] != "v" {
				t.Errorf("attempt %d: %q, %v", n, r.Payload(), r.Metadata())
			}
			if seen.Load() <= refusals.Load() {
				r.SetReplyMetadata(Metadata{"refused": "yes"})
				return append(reply, "rubbish"...), Refused(Code(code.Load()), "not now")
			}
			return next.ServeCall(r, reply)
		})
	}
	m := echoMux(nil)
	m.Handle("work", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) { return append(reply, "done"...), nil }))
	m.Use(refuse)
	server := startPoolServer(t, poolAddr(t, "s"), m)
	p := newTestPool(t, poolConfig(PoolConfig{Size: 6}), server.addr)
	opens(t, p, 6)
	for _, c := range []struct {
		code            Code
		refusals, tries int32
		good            bool
	}{
		{ResourceExhausted, 0, 1, true},
		{ResourceExhausted, 3, 4, true},
		{Unavailable, 100, 4, false}, // defaultMaxTries
		{InvalidArgument, 1, 1, false},
		{Unimplemented, 1, 1, false},
	} {
		forms := map[string]func(*Call) error{
			"Do":    func(call *Call) error { return p.Do(background, call) },
			"DoAll": func(call *Call) error { return p.DoAll(background, []*Call{call}) },
		}
		for form, do := range forms {
			seen.Store(0)
			refusals.Store(c.refusals)
			code.Store(uint32(c.code))
			call := &Call{Method: "work", Request: []byte("request"), Metadata: md, Reply: []byte("have ")}
			err := do(call)
			if seen.Load() != c.tries || (err == nil) != c.good || call.Metadata["k"] != "v" || string(call.Request) != "request" {
				t.Errorf("%s, %d refusals with %v: %d attempts, %v", form, c.refusals, c.code, seen.Load(), err)
			}
			switch want := "have "; {
			case c.good && (string(call.Reply) != want+"done" || call.ReplyMetadata != nil):
				t.Errorf("%s: %q, %v", form, call.Reply, call.ReplyMetadata)
			case !c.good:
				wantCode(t, err, c.code, true)
				if string(call.Reply) != want {
					t.Errorf("%s failed with reply %q", form, call.Reply)
				}
			}
		}
	}
	// With a single connection there is no other one: it is not asked again.
	one := newTestPool(t, poolConfig(PoolConfig{Size: 1}), server.addr)
	seen.Store(0)
	refusals.Store(100)
	code.Store(uint32(ResourceExhausted))
	err := one.Do(background, &Call{Method: "work", Request: []byte("request"), Metadata: md})
	wantCode(t, err, ResourceExhausted, true)
	if seen.Load() != 1 {
		t.Errorf("%d attempts on one connection", seen.Load())
	}
}

// TestPoolRunsTwiceOnlyWhatIsIdempotent when connections break under calls that
// run, and does not forget that they may have run.
func TestPoolRunsTwiceOnlyWhatIsIdempotent(t *testing.T) {
	watchdog(t)
	var ran, breaks atomic.Int32
	m := echoMux(nil)
	m.Handle("work", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		if ran.Add(1) <= breaks.Load() {
			r.Conn().nc.Close()
			<-r.Conn().eof
			return reply, errors.New("too late")
		}
		switch string(r.Payload()) {
		case "fail":
			return reply, &Error{Code: Unavailable, Message: "an answer"}
		case "refuse":
			return reply, Refused(InvalidArgument, "not that")
		}
		return append(reply, "done"...), nil
	}))
	server := startPoolServer(t, poolAddr(t, "s"), m)
	p := newTestPool(t, poolConfig(PoolConfig{Size: 2, MaxBackOff: time.Millisecond}), server.addr)
	for _, c := range []struct {
		idempotent     bool
		breaks, ran    int32
		request, reply string
		code           Code
	}{
		{false, 0, 1, "", "done", OK},
		{false, 1, 1, "", "", Unavailable},
		{true, 1, 2, "", "done", OK},
		{true, 3, 4, "", "done", OK},
		{true, 100, 4, "", "", Unavailable},
		{true, 0, 1, "fail", "", Unavailable}, // an answer is an answer
		{true, 1, 2, "refuse", "", InvalidArgument},
	} {
		for _, all := range []bool{false, true} {
			opens(t, p, 2) // so that there is another one
			ran.Store(0)
			breaks.Store(c.breaks)
			call := &Call{Method: "work", Idempotent: c.idempotent, Request: []byte(c.request)}
			var err error
			if all {
				err = p.DoAll(background, []*Call{call})
			} else {
				err = p.Do(background, call)
			}
			if ran.Load() != c.ran || string(call.Reply) != c.reply || CodeOf(err) != c.code || NotRun(err) {
				t.Errorf("%+v (DoAll %v): ran %d times, %q, %v, NotRun %v", c, all, ran.Load(), call.Reply, err, NotRun(err))
			}
		}
	}
	breaks.Store(1)
	ran.Store(0)
	_, err := p.Call(background, "work", nil)
	wantCode(t, err, Unavailable, false)
	// Broken, and then no connection: that the last attempt has not run does not count.
	cfg := poolConfig(PoolConfig{Size: 1, MaxWait: 50 * time.Millisecond})
	gate := &gateTransport{Transport: testPipes, gate: make(chan error, 1)}
	addr := "pipe:" + t.Name()
	startPoolServer(t, addr, m)
	q := closedPool(t, NewPool(withPipes(cfg, gate), addr))
	gate.gate <- nil
	ran.Store(0)
	wantCode(t, q.Do(background, &Call{Method: "work", Idempotent: true}), Unavailable, false)
}

// TestPoolReplacesOldConnections under load, with calls that are called back,
// long streams and one-way messages: nothing fails or gets out of order.
func TestPoolReplacesOldConnections(t *testing.T) {
	t.Parallel()
	watchdog(t)
	m := echoMux(nil)
	m.Handle("back", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		time.Sleep(time.Duration(len(r.Payload())) * time.Millisecond)
		got, err := r.Conn().Call(r.Context(), "echo", []byte("back"))
		return append(reply, got...), err
	}))
	var last, handled atomic.Int64
	m.Handle("note", HandlerFunc(func(r *Request, _ []byte) ([]byte, error) {
		var n int64
		fmt.Sscan(string(r.Payload()), &n)
		if before := last.Swap(n); n != before+1 {
			t.Errorf("message %d after %d", n, before)
		}
		handled.Add(1)
		return nil, nil
	}))
	m.HandleStream("echo stream", func(s *Stream) error {
		for {
			b, err := s.Recv()
			if err != nil {
				return nil
			}
			if err := s.Send(b); err != nil {
				return err
			}
		}
	})
	server := startPoolServer(t, poolAddr(t, "s"), m)
	cfg := serves(echoMux(nil))
	cfg.Pool = PoolConfig{Size: 2, MaxAge: 40 * time.Millisecond}
	p := newTestPool(t, cfg, server.addr)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	go func() {
		defer close(stop)
		until(t, "many replacements", func() bool { return p.Stats().Dials > 20 || t.Failed() })
	}()
	running := func() bool {
		select {
		case <-stop:
			return false
		default:
			return !t.Failed()
		}
	}
	for i := range 8 {
		wg.Go(func() {
			for n := 0; running(); n++ {
				if reply, err := p.Call(background, "back", make([]byte, (n+i)%4)); err != nil || string(reply) != "back" {
					t.Errorf("%q, %v", reply, err)
				}
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			for running() {
				s, err := p.OpenStream(background, "echo stream")
				if err != nil {
					t.Error(err)
					return
				}
				for i := range 60 {
					if err := s.Send([]byte{byte(i)}); err != nil {
						t.Errorf("stream: %v", err)
						break
					}
					if b, err := s.Recv(); err != nil || len(b) != 1 || b[0] != byte(i) {
						t.Errorf("stream: %v, %v", b, err)
						break
					}
					time.Sleep(time.Millisecond)
				}
				s.Close()
			}
		})
	}
	sent := int64(0)
	wg.Go(func() {
		for running() {
			sent++
			if err := p.Notify(background, "note", fmt.Append(nil, sent)); err != nil {
				t.Errorf("Notify: %v", err)
				return
			}
			if sent%64 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	})
	for running() {
		if s := p.Stats(); s.Open > 2 {
			t.Errorf("above its size: %+v", s)
		}
		time.Sleep(time.Millisecond)
	}
	wg.Wait()
	until(t, "all messages to be handled", func() bool { return handled.Load() == sent || t.Failed() })
}

// TestPoolClosesIdleConnections, but none that is used or has a call waiting.
func TestPoolClosesIdleConnections(t *testing.T) {
	watchdog(t)
	unblock := make(chan struct{})
	server := startPoolServer(t, poolAddr(t, "s"), echoMux(unblock))
	p := newTestPool(t, poolConfig(PoolConfig{IdleTime: 30 * time.Millisecond}), server.addr)
	blocked := make(chan error, 1)
	go func() { _, err := p.Call(background, "block", nil); blocked <- err }()
	until(t, "the call", func() bool { return p.Stats().InFlight == 1 })
	for start := time.Now(); time.Since(start) < 100*time.Millisecond; time.Sleep(time.Millisecond) {
		if s := p.Stats(); s.Open != 1 {
			t.Fatalf("%+v", s)
		}
	}
	close(unblock)
	if err := receive(t, "the call", blocked); err != nil {
		t.Error(err)
	}
	for start := time.Now(); time.Since(start) < 100*time.Millisecond; time.Sleep(time.Millisecond) {
		if err := p.Notify(background, "echo", nil); err != nil {
			t.Fatal(err)
		}
	}
	if s := p.Stats(); s.Dials != 1 {
		t.Errorf("while it was used: %+v", s)
	}
	until(t, "the connection to be closed", func() bool { s := p.Stats(); return s.Open+s.Draining == 0 })
	if err := checkCall(background, p, 20, 1); err != nil {
		t.Error(err)
	}
	if s := p.Stats(); s.Dials != 2 || s.DialErrors != 0 || s.Retried != 0 {
		t.Errorf("%+v", s)
	}
}

// TestPoolRedialChecksThePeer: each connection is authorized anew.
func TestPoolRedialChecksThePeer(t *testing.T) {
	watchdog(t)
	addr := poolAddr(t, "s")
	server := startPoolServer(t, addr, echoMux(nil))
	var asked, refuse atomic.Int32
	cfg := poolConfig(PoolConfig{Size: 1, MaxBackOff: time.Millisecond})
	cfg.Authorize = func(*Peer) error {
		asked.Add(1)
		if refuse.Load() > 0 {
			return errors.New("not this one")
		}
		return nil
	}
	p := newTestPool(t, cfg, addr)
	if err := checkCall(background, p, 20, 1); err != nil || asked.Load() != 1 {
		t.Error(err, asked.Load())
	}
	refuse.Store(1)
	server.kill()
	startPoolServer(t, addr, echoMux(nil))
	until(t, "the refusal", func() bool { return p.Stats().DialErrors > 0 && asked.Load() > 1 })
	until(t, "a call to hear of it", func() bool {
		_, err := p.Call(background, "echo", nil)
		return CodeOf(err) == PermissionDenied && NotRun(err)
	})
	refuse.Store(0)
	until(t, "a call", func() bool { return checkCall(background, p, 20, 1) == nil })
}

// TestPoolEnds: Shutdown lets calls end, Close does not wait for them, and both
// end dials, callers that wait and connections that drain.
func TestPoolEnds(t *testing.T) {
	watchdog(t)
	unblock := make(chan struct{})
	entered := make(chan struct{}, 10)
	m := echoMux(nil)
	m.HandleFunc("slow", func(context.Context, []byte) ([]byte, error) {
		entered <- struct{}{}
		<-unblock
		return nil, nil
	})
	server := startPoolServer(t, poolAddr(t, "s"), m)
	begin := func() (*Pool, chan error) {
		p := newTestPool(t, poolConfig(PoolConfig{Size: 1}), server.addr)
		ended := make(chan error, 1)
		go func() { _, err := p.Call(background, "slow", nil); ended <- err }()
		receive(t, "the handler", entered)
		return p, ended
	}
	closed := func(p *Pool) {
		t.Helper()
		_, err := p.Call(background, "echo", nil)
		wantCode(t, err, Unavailable, true)
		if !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	}
	p, ended := begin()
	p.Close()
	wantCode(t, receive(t, "the call", ended), Unavailable, false)
	closed(p)

	p, ended = begin()
	ctx, cancel := context.WithTimeout(background, 50*time.Millisecond)
	defer cancel()
	if err := p.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	wantCode(t, receive(t, "the call", ended), Unavailable, false)
	closed(p)

	p, ended = begin()
	down := make(chan error, 1)
	go func() { down <- p.Shutdown(background) }()
	until(t, "the drain", func() bool { return p.Stats().Draining == 1 })
	closed(p)
	close(unblock)
	for what, ch := range map[string]chan error{"the call": ended, "Shutdown": down} {
		if err := receive(t, what, ch); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := errors.Join(p.Shutdown(background), p.Close()); err != nil {
		t.Error(err)
	}

	dialling := NewPool(withPipes(&Config{DialTimeout: -1}, &gateTransport{Transport: testPipes, gate: make(chan error)}), "pipe:"+t.Name())
	go func() { _, err := dialling.Call(background, "echo", nil); ended <- err }()
	until(t, "the dial", func() bool { s := dialling.Stats(); return s.Dialing == 1 && s.Waiting == 1 })
	dialling.Close()
	wantCode(t, receive(t, "who waits", ended), Unavailable, true)
	if s := dialling.Stats(); s.Dialing != 0 || s.Waiting != 0 {
		t.Errorf("%+v", s)
	}
	if err := NewPool(nil, "unix:///nowhere").Shutdown(background); err != nil {
		t.Error(err)
	}
}

// TestPoolNotesWaitForTheirOrder: when the connection of one-way messages drains,
// the next message goes to another one only when those before have been handled.
func TestPoolNotesWaitForTheirOrder(t *testing.T) {
	watchdog(t)
	var mu sync.Mutex
	var order []string
	handled := func() []string { mu.Lock(); defer mu.Unlock(); return slices.Clone(order) }
	entered, unblock := make(chan int, 2), make(chan struct{})
	servers := make([]*poolServer, 2)
	var addrs []string
	for i := range servers {
		m := echoMux(nil)
		m.HandleFunc("note", func(_ context.Context, msg []byte) ([]byte, error) {
			if string(msg) == "first" {
				entered <- i
				<-unblock
			}
			mu.Lock()
			defer mu.Unlock()
			order = append(order, string(msg))
			return nil, nil
		})
		addrs = append(addrs, poolAddr(t, fmt.Sprint(i)))
		servers[i] = startPoolServer(t, addrs[i], m)
	}
	p := newTestPool(t, nil, addrs...)
	opens(t, p, 2)
	if err := p.Notify(background, "note", []byte("first")); err != nil {
		t.Fatal(err)
	}
	i := receive(t, "the handler", entered)
	down, sent := make(chan struct{}), make(chan error, 1)
	go func() { defer close(down); servers[i].drain(t) }()
	until(t, "the drain", func() bool { return p.Stats().Draining == 1 })
	ctx, cancel := context.WithTimeout(background, 10*time.Millisecond)
	wantCode(t, p.Notify(ctx, "note", []byte("given up")), DeadlineExceeded, true)
	cancel()
	go func() { sent <- p.Notify(background, "note", []byte("second")) }()
	until(t, "the second", func() bool { return len(p.moving) == 1 || len(handled()) > 0 })
	close(unblock)
	if err := receive(t, "Notify", sent); err != nil {
		t.Error(err)
	}
	until(t, "both to be handled", func() bool { return len(handled()) >= 2 })
	if got := handled(); !slices.Equal(got, []string{"first", "second"}) {
		t.Errorf("handled: %q", got)
	}
	receive(t, "Shutdown", down)
}

// TestPoolNotesMoveOnWithWhoWaits: a message that waits for the window of a
// connection that is replaced goes to the next one, in front of what its sender
// sends afterwards. It does so when another message is the first to go there, and
// when the old connection ends; by then nothing may be accepted on it any more.
func TestPoolNotesMoveOnWithWhoWaits(t *testing.T) {
	for name, another := range map[string]bool{"behind another message": true, "at the end": false} {
		t.Run(name, func(t *testing.T) {
			watchdog(t)
			var mu sync.Mutex
			var order []string
			handled := func() []string { mu.Lock(); defer mu.Unlock(); return slices.Clone(order) }
			entered, unblock := make(chan struct{}), make(chan struct{})
			m := echoMux(unblock)
			m.HandleFunc("note", func(_ context.Context, msg []byte) ([]byte, error) {
				if msg[0] == '0' {
					close(entered)
					<-unblock
				}
				mu.Lock()
				defer mu.Unlock()
				order = append(order, string(msg[:1]))
				return nil, nil
			})
			server := startPoolServer(t, poolAddr(t, "s"), m)
			p := newTestPool(t, poolConfig(PoolConfig{MaxTries: 1}), server.addr)
			note := func(id string, size int) {
				if err := p.Notify(background, "note", append([]byte(id), make([]byte, size)...)); err != nil {
					t.Errorf("message %s: %v", id, err)
				}
			}
			note("0", defaultOneWayWindow)
			receive(t, "the handler", entered)
			old := p.notes.Load()
			locked := func(cond func() bool) func() bool {
				return func() bool { old.conn.out.Lock(); defer old.conn.out.Unlock(); return cond() }
			}
			waits := locked(func() bool { return !old.conn.notes.window.Empty() })
			var senders sync.WaitGroup
			senders.Go(func() { note("1", 100); note("2", 1) })
			until(t, "1 to wait", waits)
			if another { // and a call that keeps the old connection from its end
				senders.Go(func() {
					if _, err := p.Call(background, "block", nil); err != nil {
						t.Error(err)
					}
				})
				until(t, "the call", locked(func() bool { return old.conn.inUse() == 1 }))
			}
			p.mu.Lock()
			old.moved, old.at.moving = true, old.at.moving+1 // as if a new address took its place
			close(old.move)
			p.mu.Unlock()
			until(t, "the replacement", old.away.Load)
			if another {
				if !waits() {
					t.Error("1 does not wait any more")
				}
				senders.Go(func() { note("3", 1) })
			}
			until(t, "1 to move on", func() bool { return !waits() })
			close(unblock)
			senders.Wait()
			want := 3
			if another {
				want = 4
			}
			until(t, "all to be handled", func() bool { return len(handled()) == want })
			if got := handled(); got[0] != "0" || slices.Index(got, "1") > slices.Index(got, "2") {
				t.Errorf("handled: %q", got)
			}
		})
	}
}

// TestPoolNotesMoveOnAlone: who uses a connection of a Pool directly goes on to do
// so when the Pool's own messages go elsewhere.
func TestPoolNotesMoveOnAlone(t *testing.T) {
	notes := make(chan string, 2)
	m := echoMux(nil)
	m.HandleFunc("note", func(_ context.Context, msg []byte) ([]byte, error) { notes <- string(msg); return nil, nil })
	x, _ := pair(t, "unix", nil, serves(m))
	if err := x.moveOn(background); err != nil {
		t.Fatal(err)
	}
	if err := x.notify(background, "note", []byte("of a Pool"), true); err != error(errMoved) {
		t.Error(err)
	}
	if err := x.notify(background, "note", make([]byte, 200<<10), true); err != error(errMoved) {
		t.Error(err)
	}
	if err := x.Notify(background, "note", []byte("of another")); err != nil || receive(t, "the message", notes) != "of another" {
		t.Error(err)
	}
}
