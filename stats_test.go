package plugwire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// withMetrics returns a Config that serves m and counts its calls.
func withMetrics(m *Mux) *Config { return &Config{Mux: m, Metrics: true} }

// methodOf returns the counters of a method, zero ones when there are none.
func methodOf(s Stats, name string, served, stream bool) MethodStats {
	for _, m := range s.Methods {
		if m.Method == name && m.Served == served && m.Stream == stream {
			return m
		}
	}
	return MethodStats{}
}

// TestStatsByMethod makes calls that end in many ways, and looks at how both sides
// counted them.
func TestStatsByMethod(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		unblock := make(chan struct{})
		mux := echoMux(unblock)
		mux.HandleFunc("fail", func(_ context.Context, req []byte) ([]byte, error) {
			return nil, &Error{Code: map[string]Code{"n": NotFound, "o": 300}[string(req)]}
		})
		mux.HandleFunc("slow", func(context.Context, []byte) ([]byte, error) {
			time.Sleep(20 * time.Millisecond)
			return nil, nil
		})
		x, y := pair(t, transport, &Config{Metrics: true}, withMetrics(mux))
		ctx := context.Background()
		until(t, "the methods", func() bool { return len(x.Methods()) == len(mux.Methods()) })
		calls := make([]*Call, 50)
		for i := range calls {
			calls[i] = &Call{Method: "echo", Request: fill(64, 1)}
		}
		if err := x.DoAll(ctx, calls); err != nil {
			t.Fatal(err)
		}
		for range 50 {
			if _, err := x.Call(ctx, "echo", fill(200_000, 1)); err != nil {
				t.Fatal(err)
			}
		}
		for _, req := range []string{"n", "n", "o"} {
			x.Call(ctx, "fail", []byte(req))
		}
		x.Call(ctx, "slow", nil)
		x.Call(ctx, "nobody", nil)
		cancelled, cancel := context.WithCancel(ctx)
		ended := make(chan error, 3)
		go func() { _, err := x.Call(cancelled, "block", nil); ended <- err }()
		go func() { _, err := x.Call(ctx, "block", nil); ended <- err }()
		until(t, "both to run", func() bool {
			return methodOf(x.Stats(), "block", false, false).InFlight == 2 && methodOf(y.Stats(), "block", true, false).InFlight == 2
		})
		if s := x.Stats(); s.CallsInFlight != 2 || s.StreamsInFlight != 0 {
			t.Errorf("%d calls in flight", s.CallsInFlight)
		}
		if s := y.Stats(); s.CallsServing != 2 || s.StreamsServing != 0 {
			t.Errorf("%d calls are served", s.CallsServing)
		}
		cancel()
		receive(t, "the cancelled call", ended)
		until(t, "its handler", func() bool { return methodOf(y.Stats(), "block", true, false).InFlight == 1 })
		close(unblock)
		receive(t, "the other call", ended)
		want := []MethodStats{
			{Method: "block", Ended: CodeCounts{OK: 1, Canceled: 1}},
			{Method: "echo", Ended: CodeCounts{OK: 100}},
			{Method: "fail", Ended: CodeCounts{NotFound: 2, len(CodeCounts{}) - 1: 1}},
			{Method: "slow", Ended: CodeCounts{OK: 1}},
			{Method: "nobody", Ended: CodeCounts{Unimplemented: 1}},
		}
		until(t, "the endings to be counted", func() bool {
			mine, theirs := x.Stats(), y.Stats()
			for _, w := range want {
				served := w.Ended
				if w.Method == "nobody" { // never sent
					served = CodeCounts{}
				}
				if methodOf(mine, w.Method, false, false).Ended != w.Ended || methodOf(theirs, w.Method, true, false).Ended != served {
					return false
				}
			}
			return mine.CallsInFlight == 0 && theirs.CallsServing == 0
		})
		for _, s := range []Stats{x.Stats(), y.Stats()} {
			if len(s.Transports) != 1 || s.Transport != s.Transports[0].Transport || s.Transport != x.Peer().Transport {
				t.Errorf("over %s: %q, %d transports", transport, s.Transport, len(s.Transports))
			}
			for _, m := range s.Methods {
				if m.InFlight != 0 || m.Latency.Count() != m.Ended.Sum() {
					t.Errorf("%s: %d in flight, %d latencies of %d", m.Method, m.InFlight, m.Latency.Count(), m.Ended.Sum())
				}
				if m.Method == "slow" && (m.Latency.Quantile(0.5) < 19*time.Millisecond || m.Latency.Sum() < 20*time.Millisecond) {
					t.Errorf("slow (served: %v) took %v", m.Served, m.Latency.Quantile(0.5))
				}
			}
		}
	})
}

// TestStatsByStream is the same for streams.
func TestStatsByStream(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		mux := NewMux()
		mux.HandleStream("echo", func(s *Stream) error {
			for {
				msg, err := s.Recv()
				if err == io.EOF {
					return nil
				} else if err != nil {
					return err
				}
				if string(msg) == "fail" {
					return &Error{Code: DataLoss}
				}
				if err := s.Send(msg); err != nil {
					return err
				}
			}
		})
		x, y := pair(t, transport, &Config{Metrics: true}, withMetrics(mux))
		open := func() *Stream {
			s, err := x.OpenStream(context.Background(), "echo")
			if err != nil {
				t.Fatal(err)
			}
			for range 10 {
				if err := s.Send([]byte("message")); err != nil {
					t.Fatal(err)
				}
				if _, err := s.Recv(); err != nil {
					t.Fatal(err)
				}
			}
			return s
		}
		well, failed, reset := open(), open(), open()
		if s := x.Stats(); s.StreamsInFlight != 3 || s.StreamsOpened != 3 || s.CallsInFlight != 0 || methodOf(s, "echo", false, true).InFlight != 3 {
			t.Errorf("opened: %+v", s.TransportStats)
		}
		if s := y.Stats(); s.StreamsServing != 3 || s.CallsServing != 0 || methodOf(s, "echo", true, true).InFlight != 3 {
			t.Errorf("served: %+v", s.TransportStats)
		}
		well.CloseSend()
		well.Recv()
		failed.Send([]byte("fail"))
		failed.Recv()
		reset.Reset(Aborted)
		x.OpenStream(context.Background(), "nobody") // perhaps never sent
		until(t, "the ends", func() bool { return y.Stats().StreamsServed >= 3 && x.Stats().StreamsInFlight <= 1 })
		if m := methodOf(x.Stats(), "echo", false, true); m.Ended != (CodeCounts{OK: 1, DataLoss: 1, Aborted: 1}) || m.InFlight != 0 {
			t.Errorf("the opener counts %v", m.Ended)
		}
		if m := methodOf(y.Stats(), "echo", true, true); m.Ended[OK] != 1 || m.Ended[DataLoss] != 1 || m.Ended.Sum() != 3 {
			t.Errorf("the handler's side counts %v", m.Ended)
		}
	})
}

// TestStatsAgree has both sides do everything at once, and compares what each
// says that it sent with what the other says that it got.
func TestStatsAgree(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		mux := func() *Mux {
			m := echoMux(nil)
			m.HandleStream("stream", func(s *Stream) error {
				for {
					msg, err := s.Recv()
					if err != nil {
						return nil
					}
					s.Send(msg)
				}
			})
			return m
		}
		x, y := pair(t, transport, withMetrics(mux()), withMetrics(mux()))
		ctx := context.Background()
		const rounds = 16
		work := func(c *Conn) {
			for i := range rounds {
				size := 1 + i*i*500
				if _, err := c.Call(ctx, "echo", fill(size, 1)); err != nil {
					t.Error(err)
				}
				if err := c.Notify(ctx, "echo", fill(size, 1)); err != nil {
					t.Error(err)
				}
				s, err := c.OpenStream(ctx, "stream")
				if err != nil {
					t.Error(err)
					return
				}
				for range 3 {
					s.Send(fill(size, 1))
				}
				s.CloseSend()
				for {
					if _, err := s.Recv(); err != nil {
						break
					}
				}
			}
			c.Flush(ctx)
		}
		const workers = 4
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() { work(x) })
			wg.Go(func() { work(y) })
		}
		wg.Wait()
		const n = workers * rounds
		agree := func(a, b Stats) bool {
			return a.MessagesWritten == b.MessagesRead && a.MessagesWritten == n*(1+1+1+6) &&
				a.CallsSent == n && b.CallsServed == n && a.OneWaySent == n && b.OneWayHandled == n &&
				a.StreamsOpened == n && b.StreamsServed == n && a.BytesWritten >= b.BytesRead &&
				methodOf(a, "echo", false, false).Ended == CodeCounts{OK: n} && methodOf(b, "echo", true, false).Ended == CodeCounts{OK: n} &&
				methodOf(a, "stream", false, true).Ended == CodeCounts{OK: n} && methodOf(b, "stream", true, true).Ended == CodeCounts{OK: n}
		}
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			a, b := x.Stats(), y.Stats()
			if agree(a, b) && agree(b, a) {
				sum := uint64(0)
				for _, n := range a.WriteSizes {
					sum += n
				}
				if sum != a.Writes || a.WriteSizes[0] == a.Writes {
					t.Errorf("%d writes, of the sizes %v", a.Writes, a.WriteSizes)
				}
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("the sums differ:\n%+v\n%+v", a, b)
			}
		}
	})
}

// TestStatsStalls has each limit of the other side hold somebody up.
func TestStatsStalls(t *testing.T) {
	unblock := make(chan struct{})
	mux := echoMux(unblock)
	mux.HandleStream("deaf", func(s *Stream) error { <-unblock; return nil })
	cfg := withMetrics(mux)
	cfg.Limits = Limits{MaxCalls: 2, OneWayWindow: 4 << 10, StreamWindow: 4 << 10}
	x, _ := pair(t, "unix", nil, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(unblock)
	defer cancel()
	until(t, "the methods", func() bool { return len(x.Methods()) > 0 })
	if s := x.Stats().Stalls; s != (Stalls{}) {
		t.Errorf("stalls before anything: %+v", s)
	}
	s, err := x.OpenStream(ctx, "deaf")
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		for s.Send(fill(1000, 1)) == nil {
		}
	})
	until(t, "the stream to stall", func() bool { return x.Stats().Stalls.Streams == 1 })
	for range 2 {
		wg.Go(func() { x.Call(ctx, "block", nil) })
	}
	until(t, "a call to wait for a slot", func() bool { return x.Stats().Stalls.Calls == 1 })
	wg.Go(func() {
		for x.Notify(ctx, "block", fill(1000, 1)) == nil {
		}
	})
	until(t, "a one-way message to wait", func() bool { return x.Stats().Stalls.OneWay == 1 })
	if s := x.Stats().Stalls; s != (Stalls{Calls: 1, OneWay: 1, Streams: 1}) {
		t.Errorf("stalls: %+v", s)
	}
}

// TestStatsWriteStalls has many large messages compete for what the system takes.
func TestStatsWriteStalls(t *testing.T) {
	dialled, accepted := netPair(t, "unix", nil)
	x, _ := openPair(t, dialled, accepted, nil, serves(echoMux(nil)))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { x.Call(ctx, "echo", fill(8<<20, 1)) })
	}
	until(t, "somebody to wait for room", func() bool { return x.Stats().Stalls.Writes > 0 })
	cancel()
	wg.Wait()
}

// TestStatsOfConnections counts connections, good and bad, of a Server.
func TestStatsOfConnections(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		cfg := testConfig(&Config{Metrics: true, Limits: Limits{MaxConns: 3}, HandshakeTimeout: 10 * time.Second})
		s := &Server{Mux: echoMux(nil), Config: cfg}
		l, err := s.Listen(listenAddr(t, transport))
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		defer func() { s.Close(); <-served }()
		addr := addrURI(l.Addr())
		dial := func() *Conn {
			c, err := Dial(t.Context(), addr, testConfig(&Config{Metrics: true}))
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		a, b, c := dial(), dial(), dial()
		for _, c := range []*Conn{a, b, c} {
			if _, err := c.Call(t.Context(), "echo", nil); err != nil {
				t.Fatal(err)
			}
		}
		until(t, "their places", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.conns) == 3 }) // or a handshake makes room
		if _, err := Dial(t.Context(), addr, testConfig(nil)); err == nil {
			t.Error("a fourth was let in")
		}
		until(t, "its end", func() bool { return s.Stats().ConnsFailed.Sum() > 0 }) // which it learns of first
		if s := s.Stats(); s.Conns != 3 || s.ConnsOpened != 3 || s.ConnsFailed != (CodeCounts{ResourceExhausted: 1}) {
			t.Errorf("three are open: %+v", s.TransportStats)
		}
		a.Close()
		b.fail(errors.New("broken"))
		until(t, "two ends", func() bool { return s.Stats().Conns == 1 })
		st := s.Stats()
		if st.ConnsBroken.Sum() != 1 || st.ConnsBroken[Unavailable] != 1 || st.ConnsOpened != 3 {
			t.Errorf("one has broken: %+v", st.TransportStats)
		}
		if m := methodOf(st, "echo", true, false); m.Ended != (CodeCounts{OK: 3}) || st.CallsServed != 3 {
			t.Errorf("%d calls, by method %v", st.CallsServed, m.Ended)
		}
		// Something that does not speak the protocol.
		tr, err := cfg.transportOf("dial", addr)
		if err != nil {
			t.Fatal(err)
		}
		nc, err := tr.Dial(t.Context(), addr, cfg.withDefaults())
		if err != nil {
			t.Fatal(err)
		}
		nc.SetDeadline(time.Now().Add(10 * time.Second))
		nc.Write([]byte("GET / HTTP/1.1\r\nHost: plugwire\r\n\r\n"))
		io.Copy(io.Discard, nc)
		nc.Close()
		until(t, "the failure", func() bool { return s.Stats().ConnsFailed.Sum() == 2 })
		if st := s.Stats(); len(st.Transports) != 1 || st.Transport != c.Peer().Transport || st.Refused != 0 {
			t.Errorf("transports %q, %d refused", st.Transport, st.Refused)
		}
		c.Close()
		if st := c.Stats(); st.Conns != 0 || st.CallsSent != 1 {
			t.Errorf("closed: %+v", st.TransportStats)
		}
	})
}

// TestStatsOfRefusedPeers counts who is turned away.
func TestStatsOfRefusedPeers(t *testing.T) {
	refuse := func(*Peer) error { return errors.New("not you") }
	dialled, accepted := netPair(t, "unix", nil)
	s := &Server{Mux: NewMux(), Config: testConfig(&Config{Authorize: refuse})}
	served := make(chan error, 1)
	go func() { served <- s.ServeConn(context.Background(), accepted) }()
	if c, err := NewConn(t.Context(), dialled, testConfig(nil)); err == nil {
		c.Close()
		t.Error("it was let in")
	}
	receive(t, "the refusal", served)
	if st := s.Stats(); st.Refused != 1 || st.ConnsFailed != (CodeCounts{PermissionDenied: 1}) || st.Conns != 0 || st.ConnsOpened != 0 {
		t.Errorf("%+v", st.TransportStats)
	}
}

// TestStatsOfSeveralTransports has one Server listen on two.
func TestStatsOfSeveralTransports(t *testing.T) {
	s := &Server{Mux: echoMux(nil), Config: testConfig(&Config{Metrics: true})}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer s.Close()
	names := []string{"pipe", "tcp"}
	for i, transport := range names {
		l, err := s.Listen(listenAddr(t, transport))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { s.Serve(l) })
		p := NewPool(testConfig(&Config{Metrics: true}), addrURI(l.Addr()))
		defer p.Close()
		for range i + 1 {
			if _, err := p.Call(t.Context(), "echo", nil); err != nil {
				t.Fatal(err)
			}
		}
		until(t, "the endings to be counted", func() bool {
			return methodOf(p.Stats().Stats, "echo", false, false).Ended[OK] == uint64(i+1)
		})
		if st := p.Stats(); st.Transport != transport || st.Waits.Count() != 1 {
			t.Errorf("the pool over %s: %+v", transport, st)
		}
	}
	st := s.Stats()
	if st.Transport != "pipe,tcp" || len(st.Transports) != 2 || st.CallsServed != 3 || methodOf(st, "echo", true, false).Ended[OK] != 3 {
		t.Errorf("together: %+v", st.TransportStats)
	}
	for i, one := range st.Transports {
		if one.Transport != names[i] || one.CallsServed != uint64(i+1) || len(one.Methods) != 1 || one.Methods[0].Ended[OK] != uint64(i+1) {
			t.Errorf("%+v", one)
		}
	}
}

// TestStatsMethodsAreBounded calls methods of ever new names, which the other side
// has a fallback for.
func TestStatsMethodsAreBounded(t *testing.T) {
	mux := NewMux()
	mux.Fallback(HandlerFunc(func(_ *Request, reply []byte) ([]byte, error) { return reply, nil }))
	x, y := pair(t, "unix", &Config{Metrics: true}, withMetrics(mux))
	const names = maxMethodNames + 100
	for i := range names {
		if _, err := x.Call(t.Context(), fmt.Sprint("method ", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the last to be counted", func() bool {
		return methodOf(x.Stats(), "", false, false).Ended[OK] == 100 && methodOf(y.Stats(), "", true, false).Ended[OK] == names
	})
	if n := len(x.Stats().Methods); n != maxMethodNames+1 {
		t.Errorf("%d methods", n)
	}
	if n := len(y.Stats().Methods); n != 1 {
		t.Errorf("%d methods of names that the other side chose", n)
	}
}

// TestStatsWithoutMetrics has methods counted by those who ask for it only.
func TestStatsWithoutMetrics(t *testing.T) {
	x, y := pair(t, "unix", nil, serves(echoMux(nil)))
	if _, err := x.Call(t.Context(), "echo", nil); err != nil {
		t.Fatal(err)
	}
	if len(x.Stats().Methods)+len(y.Stats().Methods) > 0 {
		t.Error("methods are counted")
	}
}

// TestStatsOfBrokenConnections has calls in flight when their connection breaks.
func TestStatsOfBrokenConnections(t *testing.T) {
	dialled, accepted := netPair(t, "unix", nil)
	x, y := openPair(t, dialled, accepted, &Config{Metrics: true}, withMetrics(echoMux(nil)))
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() { x.Call(context.Background(), "block", nil) })
	}
	until(t, "ten calls", func() bool { return methodOf(y.Stats(), "block", true, false).InFlight == 10 })
	accepted.(interface{ CloseRead() error }).CloseRead()
	dialled.(interface{ CloseRead() error }).CloseRead()
	dialled.Close()
	wg.Wait()
	if m := methodOf(x.Stats(), "block", false, false); m.Ended != (CodeCounts{Unavailable: 10}) || m.InFlight != 0 {
		t.Errorf("%v, %d in flight", m.Ended, m.InFlight)
	}
	until(t, "the handlers to return", func() bool { return methodOf(y.Stats(), "block", true, false).Ended[Canceled] == 10 })
}

// TestStatsJSON is what expvar shows.
func TestStatsJSON(t *testing.T) {
	m := MethodStats{Method: "m"}
	m.Ended.add(NotFound, 2)
	m.Ended.add(1000, 1)
	m.Latency.h.Add(time.Millisecond, 3)
	b, err := json.Marshal(Stats{TransportStats: TransportStats{Transport: "tcp", Methods: []MethodStats{m}}})
	for _, want := range []string{`"Ended":{"NotFound":2,"other":1}`, `"Count":3`, `"Sum":0.003`, `"Transport":"tcp"`, `"P999":0.00`} {
		if err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s is not in %s (%v)", want, b, err)
		}
	}
	var names []string
	for name := range m.Ended.All() {
		names = append(names, name)
		break
	}
	if !slices.Equal(names, []string{"NotFound"}) {
		t.Errorf("%q", names)
	}
}

// TestTheTableOfMetricsHasEachField compares docs/METRICS.md with the fields of
// Stats and PoolStats. That it has the metrics is tested in contrib/prometheus.
func TestTheTableOfMetricsHasEachField(t *testing.T) {
	b, err := os.ReadFile("docs/METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for line := range strings.Lines(string(b)) {
		if cells := strings.Split(line, "|"); len(cells) == 7 && strings.HasPrefix(line, "| `plugwire_") {
			for _, name := range strings.Split(cells[4], ",") {
				documented = append(documented, strings.Trim(name, " `"))
			}
		}
	}
	var there []string
	for _, f := range reflect.VisibleFields(reflect.TypeFor[PoolStats]()) {
		switch f.Name {
		case "Stats", "TransportStats", "Transport", "Transports": // labels
		case "InFlight": // a sum
		default:
			there = append(there, f.Name)
		}
	}
	slices.Sort(documented)
	slices.Sort(there)
	if documented = slices.Compact(documented); !slices.Equal(documented, there) {
		t.Errorf("documented: %q\nthere:      %q", documented, there)
	}
}
