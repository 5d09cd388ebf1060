package plugwire

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// elsewhere is a connection that says it is between other addresses.
type elsewhere struct {
	net.Conn
	local, remote string
}

func tcpAddr(s string) net.Addr          { a, _ := net.ResolveTCPAddr("tcp", s); return a }
func (e elsewhere) LocalAddr() net.Addr  { return tcpAddr(e.local) }
func (e elsewhere) RemoteAddr() net.Addr { return tcpAddr(e.remote) }

// That Listen and Dial keep to loopback is in transport_tcp_test.go. This is
// about connections that somebody else has made.
func TestT11PlaintextBeyondLoopbackIsRefusedOnAnyConnection(t *testing.T) {
	const near, far = "127.0.0.1:7000", "192.0.2.1:7000"
	insecure := &Config{TCP: TCPConfig{Insecure: true}}
	for _, row := range []struct {
		local, remote string
		cfg           *Config
		fine          bool
	}{
		{near, near, nil, true},
		{"[::1]:7000", "[::1]:7001", nil, true},
		{near, "[::ffff:127.0.0.1]:7001", nil, true},
		{near, far, nil, false},
		{far, near, nil, false},
		{far, far, nil, false},
		{"[fe80::1%1]:7000", "[fe80::2%1]:7000", nil, false},
		{far, far, &Config{Authorize: anyone}, false}, // which is not asked what the network sees
		{far, far, insecure, true},
	} {
		for _, dials := range []bool{true, false} {
			a, b := net.Pipe()
			s := &Server{Mux: NewMux()}
			served := make(chan error, 1)
			var refused, other error
			if dials {
				go func() { served <- s.ServeConn(context.Background(), b) }()
				_, refused = opened(NewConn(context.Background(), elsewhere{a, row.local, row.remote}, row.cfg))
				other = <-served
			} else {
				s.Config = row.cfg
				go func() { served <- s.ServeConn(context.Background(), elsewhere{b, row.local, row.remote}) }()
				_, other = opened(NewConn(context.Background(), a, nil))
				refused = <-served
			}
			if row.fine {
				if refused != nil || other != nil {
					t.Errorf("%+v, dials %v: %v, %v", row, dials, refused, other)
				}
				continue
			}
			names(t, "who refuses", refused, PermissionDenied, "is not a loopback address", "Config.TCP.Insecure")
			names(t, "who is refused", other, PermissionDenied, "is not a loopback address", "Config.TCP.Insecure")
			if n := s.Stats().Refused; n == 1 == dials {
				t.Errorf("dials %v: the server counts %d refused", dials, n)
			}
		}
	}
	// A listener that is open to all is refused as a whole.
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := addrURI(l.Addr())
	served := make(chan error, 1)
	s := &Server{Mux: NewMux()}
	go func() { served <- s.Serve(l) }()
	wantError(t, receive(t, "Serve's error", served), PermissionDenied, "listen", addr, "is not a loopback address", "Config.TCP.Insecure")
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("and left open: %v", err)
	}
	if l, err = net.Listen("tcp", "0.0.0.0:0"); err != nil {
		t.Fatal(err)
	}
	s = &Server{Mux: NewMux(), Config: insecure}
	go func() { served <- s.Serve(l) }()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if _, err := opened(Dial(context.Background(), "tcp://127.0.0.1:"+port, nil)); err != nil {
		t.Error(err)
	}
	s.Close()
	if err := <-served; err != ErrServerClosed {
		t.Error(err)
	}
}

// opened closes a connection that was opened.
func opened(c *Conn, err error) (*Conn, error) {
	if err == nil {
		closeBoth(c)
	}
	return c, err
}

// The other side's reasons are its own: a server counts whom it refused itself.
func TestOnlyOwnRefusalsAreCounted(t *testing.T) {
	no := &Config{Authorize: func(*Peer) error { return errors.New("no") }}
	for _, row := range []struct {
		dialler, listener *Config
		want              uint64
	}{
		{nil, no, 1},
		{no, nil, 0},
		{&Config{Versions: []int{1}}, &Config{Versions: []int{2}}, 0},
	} {
		a, b := socketPair(t, "pipe")
		s := &Server{Mux: NewMux(), Config: row.listener}
		served := make(chan error, 1)
		go func() { served <- s.ServeConn(context.Background(), b) }()
		_, err := opened(NewConn(context.Background(), a, row.dialler))
		if err2 := <-served; err == nil || err2 == nil || s.Stats().Refused != row.want {
			t.Errorf("%v, %v: %d are counted, want %d", err, err2, s.Stats().Refused, row.want)
		}
	}
}

func TestThePeerIsInEveryHandlersContext(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		type sight struct {
			who      string
			direct   *Peer
			info     *Info
			valid    bool
			executed string
		}
		seen := make(chan sight, 10)
		see := func(who string, direct *Peer, ctx context.Context) {
			info, _ := InfoFromContext(ctx)
			seen <- sight{who, direct, info, direct.Valid(), direct.Executable}
		}
		m := NewMux()
		m.Handle("call", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			see("call", r.Peer(), r.Context())
			return reply, nil
		}))
		m.Handle("note", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			see("one-way", r.Peer(), r.Context())
			return reply, nil
		}))
		m.HandleFunc("simple", func(ctx context.Context, _ []byte) ([]byte, error) {
			info, _ := InfoFromContext(ctx)
			see("simple", info.Peer, ctx)
			return nil, nil
		})
		m.HandleStream("stream", func(s *Stream) error {
			see("stream", s.Info().Peer, s.Context())
			return nil
		})
		x, y := pair(t, transport, nil, serves(m))
		for _, method := range []string{"call", "simple"} {
			if _, err := x.Call(t.Context(), method, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := x.Notify(t.Context(), "note", nil); err != nil {
			t.Fatal(err)
		}
		s, err := x.OpenStream(t.Context(), "stream")
		if err != nil {
			t.Fatal(err)
		}
		s.Recv()
		s.Close()
		self, _ := os.Executable()
		known := transport == "unix" && runtime.GOOS == "linux" || transport == "npipe"
		for range 4 {
			got := receive(t, "a sight of the peer", seen)
			p := y.Peer()
			if got.direct != p || got.info == nil || got.info.Peer != p {
				t.Errorf("%s: %v, %+v; want %v", got.who, got.direct, got.info, p)
			}
			if p.Transport != transport || p.Verified != (transport == localTransport) || p.Verified && (p.UID != os.Geteuid() || p.GID != os.Getegid()) ||
				!p.Verified && (p.UID != -1 || p.GID != -1 || p.PID != -1) {
				t.Errorf("%s over %s: %+v", got.who, transport, p)
			}
			if got.valid != known || known && (got.executed != self || p.PID != os.Getpid()) || !known && got.executed != "" {
				t.Errorf("%s over %s: valid %v, pid %d, program %q", got.who, transport, got.valid, p.PID, got.executed)
			}
		}
	})
}

// The descriptor behind Valid lives as long as its connection, however that ends.
func TestThePeerIsNotValidAfterTheConnection(t *testing.T) {
	before := openDescriptors()
	var last *Peer
	watched := &Config{Authorize: func(p *Peer) error { last = p; return nil }}
	refused := &Config{Authorize: func(p *Peer) error { last = p; return errors.New("no") }}
	for i, cfg := range []*Config{watched, refused} {
		for _, hello := range []string{"", "GET / HTTP/1.1\r\n\r\n"} {
			x := meetStranger(t, "unix", cfg)
			x.Write([]byte(hello))
			closeWrite(x.Conn)
			if _, err := x.outcome(t); err == nil || last.Valid() {
				t.Errorf("refused %v, said %q: %v, and the peer is valid: %v", i == 1, hello, err, last.Valid())
			}
		}
	}
	for range 5 {
		x, y := pair(t, "unix", nil, nil)
		var wg sync.WaitGroup
		for _, c := range []*Conn{x, y} {
			for range 2 {
				wg.Go(func() {
					for {
						select {
						case <-c.Done():
							return
						default:
							c.Peer().Valid()
						}
					}
				})
			}
		}
		x.Close()
		<-y.Done()
		wg.Wait()
		if x.Peer().Valid() || y.Peer().Valid() {
			t.Error("valid after the connection's end")
		}
	}
	if now := openDescriptors(); now > before {
		t.Errorf("%d descriptors before, %d after", before, now)
	}
}

// Where the kernel names a user and no group, no list has that group.
func TestT01WhatIsNotKnownIsInNoList(t *testing.T) {
	p := &Peer{UID: os.Geteuid() + 1, GID: -1, PID: -1, Transport: "unix", Verified: true}
	lists := &Config{Unix: UnixConfig{ClientUIDs: []int{-1}, ClientGIDs: []int{-1}, ServerUIDs: []int{-1}}}
	for _, dialler := range []bool{true, false} {
		if err := lists.refusal(nil, p, dialler, nil); CodeOf(err) != PermissionDenied {
			t.Errorf("dialler %v: %v", dialler, err)
		}
		lists := &Config{Unix: UnixConfig{ClientUIDs: []int{p.UID}, ServerUIDs: []int{p.UID}}}
		if err := lists.refusal(nil, p, dialler, nil); err != nil {
			t.Errorf("dialler %v: %v", dialler, err)
		}
		if err := lists.refusal(nil, p, dialler, errors.ErrUnsupported); CodeOf(err) != PermissionDenied {
			t.Errorf("dialler %v, user not known: %v", dialler, err)
		}
	}
}

// By SID, over named pipes: who is not named is refused, on every platform.
func TestSIDsThatAreNotKnownOrNotListedAreRefused(t *testing.T) {
	const listed, other = "S-1-5-21-1-2-3-1001", "S-1-5-21-1-2-3-1002"
	for _, dialler := range []bool{true, false} {
		cfg := &Config{NPipe: NPipeConfig{ClientSIDs: []string{listed, ""}}}
		field := "server's Config.NPipe.ClientSIDs"
		if dialler {
			cfg, field = &Config{NPipe: NPipeConfig{ServerSIDs: []string{listed, ""}}}, "dialling side's Config.NPipe.ServerSIDs"
		}
		for sid, code := range map[string]Code{listed: OK, other: PermissionDenied, "": PermissionDenied} {
			p := &Peer{UID: os.Geteuid(), GID: -1, PID: 7, SID: sid, Transport: "npipe", Verified: true}
			err := cfg.refusal(nil, p, dialler, nil)
			if CodeOf(err) != code || err != nil && !strings.Contains(err.Error(), field) {
				t.Errorf("dialler %v, %q: %v", dialler, sid, err)
			}
			if err := cfg.refusal(nil, p, dialler, errors.ErrUnsupported); CodeOf(err) != PermissionDenied {
				t.Errorf("dialler %v, %q, and the system does not tell: %v", dialler, sid, err)
			}
			if err := new(Config).refusal(nil, p, dialler, nil); CodeOf(err) != PermissionDenied {
				t.Errorf("dialler %v, %q, nobody listed: %v", dialler, sid, err)
			}
		}
	}
}
