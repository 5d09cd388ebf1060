package plugwire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// A stranger is a raw connection to a Server that has not said anything yet.
type stranger struct {
	net.Conn
	served chan error // what ServeConn returned
}

func meetStranger(t testing.TB, network string, cfg *Config) *stranger {
	t.Helper()
	dialled, accepted := socketPair(t, network)
	s := &Server{Mux: NewMux(), Config: cfg}
	x := &stranger{dialled, make(chan error, 1)}
	go func() { x.served <- s.ServeConn(context.Background(), accepted) }()
	x.SetDeadline(time.Now().Add(adversaryPatience))
	t.Cleanup(func() { x.Close(); s.Close() })
	return x
}

// outcome reads all that the server says, and its verdict.
func (x *stranger) outcome(t testing.TB) (said []byte, verdict error) {
	t.Helper()
	said, err := io.ReadAll(x)
	if isTimeout(err) {
		t.Fatalf("the server neither refuses nor closes; it said %q", said)
	}
	x.Close()
	select {
	case verdict = <-x.served:
	case <-time.After(adversaryPatience):
		t.Fatal("the server hangs")
	}
	return said, verdict
}

// refusal returns the reason in the magic and GOAWAY that refuse a dialler.
func refusal(said []byte) string {
	rest, ok := strings.CutPrefix(string(said), wireMagic)
	if !ok {
		return ""
	}
	h, b, err := NewFrameReader(strings.NewReader(rest), maxFrame).ReadFrame()
	if err != nil || h.Type != FrameGoAway || h.Code != goAwayFailed || len(b) < 2 {
		return ""
	}
	return string(b[2:])
}

func TestWrongHellosAreRefused(t *testing.T) {
	long := appendHello(nil, adversaryHello())
	long = append(long, tagged(99, filler[:maxHello-len(long)-4])...)
	requires := adversaryHello()
	requires.required = []string{"time-travel"}
	magic := func(frames ...[]byte) []byte { return append([]byte(wireMagic), cat(frames...)...) }
	for _, row := range []struct {
		name string
		send []byte
		want string // in the reason, on both sides; "" when it is accepted
	}{
		{"as it should be", helloBytes(adversaryHello()), ""},
		{"of 4096 bytes", magic(frame(FrameHello, 0, 0, 0, long)), ""},
		{"of 4097 bytes", magic(frame(FrameHello, 0, 0, 0, long, "x")), "HELLO of 4097 bytes"},
		{"of 2^32-1 bytes", magic(claim(1<<32-1, FrameHello, 0, 0, 0), []byte("ten bytes.")), "HELLO of 4294967295 bytes"},
		{"of 0 bytes", magic(frame(FrameHello, 0, 0, 0)), "HELLO without tag 1"},
		{"with a flag", magic(frame(FrameHello, FlagMore, 0, 0)), "HELLO frame with flag MORE"},
		{"with a code and an id", magic(frame(FrameHello, 0, 7, 7, appendHello(nil, adversaryHello()))), ""},
		{"PROOF in its place", magic(frame(FrameProof, 0, 0, 0, filler[:32])), "PROOF instead of HELLO"},
		{"CALL in its place", magic(callFrame(1, "x")), "CALL instead of HELLO"},
		{"skippable in its place", magic(frame(0x80, 0, 0, 0)), "instead of HELLO"},
		{"unknown type in its place", magic(frame(0x7f, 0, 0, 0)), "unknown frame type(0x7f)"},
		{"drain in its place", magic(goAway(1)), "GOAWAY instead of HELLO"},
		{"feature that is not there", helloBytes(requires), `feature "time-travel"`},
	} {
		t.Run(strings.ReplaceAll(row.name, " ", "-"), func(t *testing.T) {
			x := meetStranger(t, "unix", nil)
			x.Write(row.send)
			if row.want == "" {
				a := &adversary{t: t, nc: x, in: NewFrameReader(x, maxFrame)}
				a.readHello()
				x.Close()
				if err := <-x.served; err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			said, err := x.outcome(t)
			if reason := refusal(said); !strings.Contains(reason, row.want) {
				t.Errorf("the dialler is told %q (%q), want %q", reason, said, row.want)
			}
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("the server says %v, want %q", err, row.want)
			}
		})
	}
}

func TestRefusalIsNotAnswered(t *testing.T) {
	x := meetStranger(t, "unix", nil)
	x.Write(append([]byte(wireMagic), appendGoAwayFailed(nil, PermissionDenied, "I would rather not")...))
	said, err := x.outcome(t)
	if len(said) > 0 || CodeOf(err) != PermissionDenied || !strings.Contains(fmt.Sprint(err), "I would rather not") {
		t.Errorf("said %q, %v", said, err)
	}
}

// Every bit of the dialler's opening, flipped: the server refuses it, or takes
// it for what it then says.
func TestFlippedBitsOfTheOpening(t *testing.T) {
	h := adversaryHello()
	h.offered, h.apps = []string{"f"}, []uint32{1}
	good := helloBytes(h)
	var wg sync.WaitGroup
	for part := range 4 {
		wg.Go(func() {
			for bit := part; bit < 8*len(good); bit += 4 {
				b := append([]byte(nil), good...)
				b[bit/8] ^= 1 << (bit % 8)
				x := meetStranger(t, "unix", nil)
				x.Write(b)
				closeWrite(x.Conn) // a length that grew has the server wait for more
				if err := <-x.served; err == nil {
					if _, err := parseHello(b[len(wireMagic)+frameHeaderLen:]); err != nil {
						t.Errorf("bit %d of byte %d: accepted a HELLO of which the parser says %v", bit%8, bit/8, err)
					}
				} else if CodeOf(err) == Unknown {
					t.Errorf("bit %d of byte %d: %v has no code", bit%8, bit/8, err)
				}
			}
		})
	}
	wg.Wait()
}

// T12: the guess is named, and nobody is kept waiting.
func TestT12WrongProtocolsAreNamedAndClosedAtOnce(t *testing.T) {
	for name, row := range map[string]struct{ send, want string }{
		"http1":     {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP ("},
		"http2":     {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", "HTTP/2, perhaps gRPC"},
		"tls":       {"\x16\x03\x01\x00\xc5\x01\x00\x00\xc1\x03\x03" + filler[:190], "TLS"},
		"ssh":       {"SSH-2.0-OpenSSH_9.6\r\n", "SSH"},
		"gRPC":      {"PRI * HTTP/2.0\r\n", "HTTP/2, perhaps gRPC"},
		"post":      {"POST /rpc HTTP/1.1\r\n", "HTTP ("},
		"text":      {"hello\n", "unknown protocol"},
		"zeros":     {string(make([]byte, 4096)), "unknown protocol"},
		"random":    {"\x8a\x13\x00\xff\x00\x17\x99\x01\xe3", "unknown protocol"},
		"one byte":  {"x", "unknown protocol"},
		"version 2": {"\xd7PW\x02" + filler[:20], "another major version"},
	} {
		t.Run(name, func(t *testing.T) {
			least := time.Hour
			for range 5 { // this machine may be busy: one quick time shows that nothing waits for long
				x := meetStranger(t, "unix", nil)
				start := time.Now()
				x.Write([]byte(row.send))
				said, err := x.outcome(t)
				least = min(least, time.Since(start))
				if len(said) > 0 {
					t.Errorf("the server answers %q", said)
				}
				if err == nil || !strings.Contains(err.Error(), row.want) || !strings.Contains(err.Error(), "handshake") {
					t.Errorf("the server says %v, want %q", err, row.want)
				}
				if least < 200*time.Millisecond { // ten on a machine that has time
					return
				}
			}
			t.Errorf("closed after %v at best", least)
		})
	}
}

// meetServer has NewConn meet what serve does.
func meetServer(t testing.TB, cfg *Config, serve func(nc net.Conn)) (time.Duration, error) {
	t.Helper()
	dialled, accepted := socketPair(t, "unix")
	var wg sync.WaitGroup
	wg.Go(func() {
		defer accepted.Close()
		accepted.SetDeadline(time.Now().Add(adversaryPatience))
		serve(accepted)
	})
	start := time.Now()
	c, err := NewConn(context.Background(), dialled, cfg)
	took := time.Since(start)
	if err == nil {
		c.Close()
	}
	dialled.Close()
	wg.Wait()
	return took, err
}

func TestDialMeetsOthers(t *testing.T) {
	says := func(s string) func(net.Conn) {
		return func(nc net.Conn) { nc.Write([]byte(s)); io.Copy(io.Discard, nc) }
	}
	for name, row := range map[string]struct {
		serve func(net.Conn)
		want  string
		code  Code
	}{
		"http":         {says("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400"), "HTTP (", Unavailable},
		"ssh":          {says("SSH-2.0-OpenSSH_9.6\r\n"), "SSH", Unavailable},
		"grpc":         {says("\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64"), "HTTP/2, perhaps gRPC", Unavailable},
		"tls":          {says("\x15\x03\x01\x00\x02\x02\x0a"), "TLS", Unavailable},
		"silent":       {func(nc net.Conn) { io.Copy(io.Discard, nc) }, "sent nothing", DeadlineExceeded},
		"half a magic": {says("\xd7P"), "in time", DeadlineExceeded},
		"magic alone":  {says(wireMagic), "in time", DeadlineExceeded},
		"closes":       {func(nc net.Conn) { io.ReadFull(nc, make([]byte, 16)) }, "handshake", Unavailable},
		"closes after its magic": {func(nc net.Conn) {
			nc.Write([]byte(wireMagic))
			io.ReadFull(nc, make([]byte, 4+frameHeaderLen))
		}, "handshake", Unavailable},
		"speaks and closes at once": {func(nc net.Conn) { nc.Write([]byte("SSH-2.0-x\r\n")) }, "SSH", Unavailable},
		"refuses and closes at once": {func(nc net.Conn) {
			nc.Write(append([]byte(wireMagic), appendGoAwayFailed(nil, PermissionDenied, "not you")...))
		}, "not you", PermissionDenied},
		"wrong hello": {says(wireMagic + string(frame(FrameHello, 0, 0, 0))), "without tag 1", Unavailable},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			cfg := &Config{HandshakeTimeout: 200 * time.Millisecond}
			took, err := meetServer(t, cfg, row.serve)
			if err == nil || !strings.Contains(err.Error(), row.want) || CodeOf(err) != row.code || !NotRun(err) {
				t.Errorf("%v (code %v, not run: %v), want %q", err, CodeOf(err), NotRun(err), row.want)
			}
			if row.code == DeadlineExceeded && took < 180*time.Millisecond {
				t.Errorf("gave up after %v", took)
			}
			if !errors.As(err, new(*Error)) {
				t.Errorf("%T is no *Error", err)
			}
		})
	}
}

type unfinished struct {
	send []byte
	tick time.Duration // between two bytes
}

// T12: what sends nothing, or half a magic, may be anything, until the deadline.
func TestT12SilenceEndsAtTheDeadline(t *testing.T) {
	t.Parallel()
	testUnfinished(t, map[string]unfinished{
		"empty":        {},
		"half a magic": {send: []byte(wireMagic[:2])},
	})
}

// T17: a stranger that does not get on with it is gone at the deadline, whatever
// it trickles. One byte in a time of which the handshake has 80 stands for one in
// a second, for the deadline is absolute.
func TestT17UnfinishedHandshakesEndAtTheDeadline(t *testing.T) {
	t.Parallel()
	opening := helloBytes(adversaryHello())
	testUnfinished(t, map[string]unfinished{
		"magic alone":  {send: opening[:4]},
		"half a hello": {send: opening[:40]},
		"all but one":  {send: opening[:len(opening)-1]},
		"trickle":      {send: opening, tick: 5 * time.Millisecond},
	})
}

func testUnfinished(t *testing.T, rows map[string]unfinished) {
	const timeout = 400 * time.Millisecond
	for name, parts := range rows {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			var took time.Duration
			for range 3 { // this machine may be busy
				x := meetStranger(t, "unix", &Config{HandshakeTimeout: timeout})
				start := time.Now()
				stop := make(chan struct{})
				go func() {
					if parts.tick == 0 {
						x.Write(parts.send)
						return
					}
					tick := time.NewTicker(parts.tick)
					defer tick.Stop()
					for i := range parts.send {
						select {
						case <-tick.C:
							x.Write(parts.send[i : i+1])
						case <-stop:
							return
						}
					}
				}()
				said, err := x.outcome(t)
				close(stop)
				took = time.Since(start)
				if len(said) > 0 {
					t.Errorf("the server answers %q", said)
				}
				if CodeOf(err) != DeadlineExceeded || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("the server says %v", err)
				}
				if took >= timeout*9/10 && took <= timeout*11/10 {
					return
				}
			}
			t.Errorf("closed after %v, want %v", took, timeout)
		})
	}
}

// eventually waits, for a bounded time, for something that another goroutine does.
func eventually(t testing.TB, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(adversaryPatience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("does not come about")
		}
	}
}
