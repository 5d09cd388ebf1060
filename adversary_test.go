package plugwire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// The adversary is a peer that sends whatever a test wants, legal or not, to a
// real connection, and reads what comes back. It has the package's own encoder
// and none of its manners.

// A way is how the adversary meets a connection: over what, and in which role.
type way struct {
	network string // "unix" or "pipe"
	dials   bool   // the adversary dials a Server; else it is what NewConn meets
}

func (w way) String() string {
	if w.dials {
		return w.network + "-dials"
	}
	return w.network + "-listens"
}

var ways = []way{{"unix", true}, {"unix", false}, {"pipe", true}, {"pipe", false}}

// adversaryPatience is how long anything may take before it counts as a hang.
const adversaryPatience = 15 * time.Second

type adversary struct {
	t       testing.TB
	nc      net.Conn
	in      *FrameReader
	c       *Conn         // the other end
	theirs  *hello        // what it announced
	release chan struct{} // closed: "slow" handlers return
	once    sync.Once
	notes   chan string // what the handler of "note" was given
	ran     chan string // the names of the slow handlers that began
}

// Methods of the other end, by number.
const (
	mEcho = 1 + iota
	mSlow // returns when the adversary says so, whatever its context says
	mWait // returns when its context ends
	mNote
	mUnannounced
)

// adversaryLimits are small, so that each can be reached.
var adversaryLimits = Limits{MaxCalls: 8, MaxMessage: 8192, MaxFrame: 4096, MaxRequestBytes: 16384, OneWayWindow: 4096}

// socketPair returns the two ends of a connection; the first is the dialler's.
func socketPair(t testing.TB, network string) (dialled, accepted net.Conn) {
	t.Helper()
	if network == "pipe" {
		return net.Pipe()
	}
	return unixPair(t)
}

// closeWrite ends what nc sends, where it can without ending what it receives.
func closeWrite(nc net.Conn) {
	if half, ok := nc.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
		return
	}
	nc.Close()
}

// adversaryHello is what the adversary announces when a test has no wishes.
func adversaryHello() *hello {
	return &hello{version: 1, identity: "adversary", limits: limits{minFrame, 64 << 20, 8, minWindow, 128 << 20, 0}}
}

func helloBytes(h *hello) []byte {
	return append([]byte(wireMagic), frame(FrameHello, 0, 0, 0, appendHello(nil, h))...)
}

// frame lays out one frame; parts are strings, byte slices and numbers of some width.
func frame(typ FrameType, flags FrameFlags, code uint16, id uint32, parts ...any) []byte {
	var p []byte
	for _, part := range parts {
		switch v := part.(type) {
		case string:
			p = append(p, v...)
		case []byte:
			p = append(p, v...)
		default:
			p, _ = binary.Append(p, binary.LittleEndian, v)
		}
	}
	return append(appendFrameHeader(nil, FrameHeader{uint32(len(p)), typ, flags, code, id}), p...)
}

// claim is a header without its payload.
func claim(length uint32, typ FrameType, flags FrameFlags, code uint16, id uint32) []byte {
	return appendFrameHeader(nil, FrameHeader{length, typ, flags, code, id})
}

func cat(frames ...[]byte) []byte { return slices.Concat(frames...) }

// meet makes a connection with the adversary at one end, through the handshake.
func meet(t testing.TB, w way, cfg *Config, announce *hello) *adversary {
	t.Helper()
	return meetServing(t, w, cfg, announce, (*adversary).mux)
}

func meetServing(t testing.TB, w way, cfg *Config, announce *hello, mux func(*adversary) *Mux) *adversary {
	t.Helper()
	a := newAdversary(t)
	if cfg == nil {
		cfg = &Config{Limits: adversaryLimits}
	}
	if announce == nil {
		announce = adversaryHello()
	}
	dialled, accepted := socketPair(t, w.network)
	got := make(chan *Conn, 1)
	failed := make(chan error, 1)
	if w.dials {
		a.nc = dialled
		full := *cfg
		full.OnConn = func(c *Conn) { got <- c }
		s := &Server{Mux: mux(a), Config: &full}
		go func() { failed <- s.ServeConn(context.Background(), accepted) }()
		t.Cleanup(func() { s.Close() })
	} else {
		a.nc = accepted
		full := *cfg
		full.Mux = mux(a)
		go func() {
			c, err := NewConn(context.Background(), dialled, &full)
			if err != nil {
				failed <- err
				return
			}
			got <- c
		}()
	}
	t.Cleanup(a.close)
	a.nc.SetDeadline(time.Now().Add(adversaryPatience))
	a.in = NewFrameReader(a.nc, maxFrame)
	if w.dials {
		a.send(helloBytes(announce))
		a.readHello()
	} else {
		a.readHello()
		a.send(helloBytes(announce))
	}
	select {
	case a.c = <-got:
	case err := <-failed:
		t.Fatalf("the handshake failed: %v", err)
	case <-time.After(adversaryPatience):
		t.Fatal("the handshake hangs")
	}
	return a
}

func newAdversary(t testing.TB) *adversary {
	return &adversary{t: t, release: make(chan struct{}), notes: make(chan string, 1000), ran: make(chan string, 1000)}
}

func (a *adversary) mux() *Mux {
	m := NewMux()
	m.Handle("echo", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) { return append(reply, r.Payload()...), nil }))
	m.Handle("slow", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		a.note(a.ran, "slow")
		<-a.release
		return append(reply, r.Payload()...), nil
	}))
	m.Handle("wait", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		ctx := r.Context()
		a.note(a.ran, "wait")
		<-ctx.Done()
		return nil, ctx.Err()
	}))
	m.Handle("note", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		a.note(a.notes, string(r.Payload()))
		return nil, nil
	}))
	return m
}

func (a *adversary) note(ch chan string, s string) {
	select {
	case ch <- s:
	default:
	}
}

// letGo has the slow handlers return.
func (a *adversary) letGo() { a.once.Do(func() { close(a.release) }) }

func (a *adversary) close() {
	a.letGo()
	a.nc.Close()
	if a.c != nil {
		a.c.Close()
		<-a.c.Done()
	}
}

// send writes; when the other end has closed meanwhile, what it said is still to be read.
func (a *adversary) send(b []byte) { a.nc.Write(b) }

func (a *adversary) readHello() {
	a.t.Helper()
	var magic [len(wireMagic)]byte
	if _, err := io.ReadFull(a.nc, magic[:]); err != nil || string(magic[:]) != wireMagic {
		a.t.Fatalf("magic %x, %v", magic, err)
	}
	h, b, err := a.in.ReadFrame()
	if err != nil || h.Type != FrameHello {
		a.t.Fatalf("%+v %q %v instead of HELLO", h, b, err)
	}
	if a.theirs, err = parseHello(b); err != nil {
		a.t.Fatal(err)
	}
}

// describe writes a frame as the tables below have it.
func describe(h FrameHeader, b []byte) string {
	s := fmt.Sprintf("%v %v %d #%d", h.Type, h.Flags, h.Code, h.ID)
	switch h.Type {
	case FrameReply, FrameData:
		s += fmt.Sprintf(" %.20q", b)
	case FrameCredit:
		f := fieldReader{b: b}
		switch len(b) {
		case 16:
			s += fmt.Sprintf(" %d/%d", f.u64(), f.u64())
		case 4:
			s += fmt.Sprintf(" %d", f.u32())
		}
	case FrameGoAway:
		if h.Code == goAwayFailed && len(b) >= 2 {
			s += fmt.Sprintf(" %q", b[2:])
		}
	}
	return s
}

// next returns the next frame of one of the types.
func (a *adversary) next(types ...FrameType) (FrameHeader, []byte) {
	a.t.Helper()
	for {
		h, b, err := a.in.ReadFrame()
		if err != nil {
			a.t.Fatalf("waiting for %v: %v (the connection: %v)", types, err, a.c.Err())
		}
		if slices.Contains(types, h.Type) {
			return h, b
		}
		if h.Type == FrameGoAway && h.Code == goAwayFailed {
			a.t.Fatalf("waiting for %v: %s", types, describe(h, b))
		}
	}
}

// alive shows that the connection still works, and that just the wanted frames
// came before.
func (a *adversary) alive(want ...string) {
	a.t.Helper()
	const id, word = 8, "still here"
	a.send(cat(frame(FramePing, 0, 0, 0, "01234567"), frame(FrameCall, 0, mEcho, id, word)))
	var got []string
	for pong, echo := false, false; !pong || !echo || len(got) < len(want); {
		h, b, err := a.in.ReadFrame()
		if err != nil {
			a.t.Fatalf("got %q, then %v; want %q (the connection: %v)", got, err, want, a.c.Err())
		}
		switch {
		case h.Type == FramePong: // of several PINGs, only the latest must be answered
			pong = pong || string(b) == "01234567"
		case h.Type == FrameReply && h.ID == id:
			if echo || string(b) != word {
				a.t.Fatalf("reply %q", b)
			}
			echo = true
		case h.Type != FrameMethods:
			got = append(got, describe(h, b))
		}
	}
	slices.Sort(got)
	if sorted := slices.Sorted(slices.Values(want)); !slices.Equal(got, sorted) {
		a.t.Errorf("got %q, want %q", got, sorted)
	}
	if err := a.c.Err(); err != nil {
		a.t.Errorf("the connection has ended: %v", err)
	}
}

// closed shows that the connection was closed for a reason that both ends are told.
func (a *adversary) closed(reason string) {
	a.t.Helper()
	told := ""
	var err error
	for err == nil {
		var h FrameHeader
		var b []byte
		if h, b, err = a.in.ReadFrame(); err == nil && h.Type == FrameGoAway && h.Code == goAwayFailed {
			told = string(b[min(2, len(b)):])
		} else if err == nil && told != "" {
			a.t.Errorf("after GOAWAY failed came %s", describe(h, b))
		}
	}
	if errors.Is(err, errors.ErrUnsupported) || isTimeout(err) {
		a.t.Fatalf("not closed: %v (told %q)", err, told)
	}
	if !strings.Contains(told, reason) {
		a.t.Errorf("GOAWAY failed says %q, want %q", told, reason)
	}
	a.ended(reason)
}

// ended shows that the connection is over, and that this side knows why.
func (a *adversary) ended(reason string) {
	a.t.Helper()
	select {
	case <-a.c.Done():
	case <-time.After(adversaryPatience):
		a.t.Fatalf("the connection goes on: %v", a.c.Err())
	}
	if err := a.c.Err(); err == nil || !strings.Contains(err.Error(), reason) {
		a.t.Errorf("the connection's error is %v, want %q", err, reason)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// eachWay runs f in every role over every transport.
func eachWay(t *testing.T, f func(t *testing.T, w way)) {
	for _, w := range ways {
		t.Run(w.String(), func(t *testing.T) {
			watchdog(t)
			f(t, w)
		})
	}
}
