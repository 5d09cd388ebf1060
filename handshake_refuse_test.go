package plugwire

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// bothErrors runs the handshake between two real ends and returns what each says.
func bothErrors(t *testing.T, network string, dialler, listener *Config) (dialled, accepted error) {
	t.Helper()
	a, b := socketPair(t, network)
	served := make(chan error, 1)
	s := &Server{Mux: NewMux(), Config: listener}
	go func() { served <- s.ServeConn(context.Background(), b) }()
	c, err := NewConn(context.Background(), a, dialler)
	if err == nil {
		c.Close()
	}
	select {
	case accepted = <-served:
	case <-time.After(adversaryPatience):
		t.Fatal("the server hangs")
	}
	return err, accepted
}

func names(t *testing.T, side string, err error, code Code, words ...string) {
	t.Helper()
	if err == nil || CodeOf(err) != code || !NotRun(err) {
		t.Errorf("%s: %v (code %v, not run: %v)", side, err, CodeOf(err), NotRun(err))
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %v does not say %q", side, err, w)
		}
	}
}

func TestNoCommonVersionIsNamedOnBothSides(t *testing.T) {
	for _, network := range []string{"unix", "pipe"} {
		for range 20 { // the two ends race
			dialled, accepted := bothErrors(t, network, &Config{Versions: []int{1, 7}}, &Config{Versions: []int{2, 3}})
			names(t, "dialler", dialled, FailedPrecondition, "[1 7]", "[2 3]", "the dialling side speaks [1 7]")
			names(t, "listener", accepted, FailedPrecondition, "[1 7]", "[2 3]", "the listening side [2 3]")
		}
	}
}

func TestRefusedPeerIsToldWhyOnBothSides(t *testing.T) {
	refuses := &Config{Authorize: func(*Peer) error { return errors.New("not on a Sunday") }}
	for _, network := range []string{"unix", "pipe"} {
		for range 20 {
			dialled, accepted := bothErrors(t, network, nil, refuses)
			names(t, "dialler that is refused", dialled, PermissionDenied, "not on a Sunday")
			names(t, "listener that refuses", accepted, PermissionDenied, "Config.Authorize", "not on a Sunday")
			dialled, accepted = bothErrors(t, network, refuses, nil)
			names(t, "dialler that refuses", dialled, PermissionDenied, "Config.Authorize", "not on a Sunday")
			names(t, "listener that is refused", accepted, PermissionDenied, "not on a Sunday")
		}
	}
}

// Who is refused for what the kernel says of it learns so only by speaking plugwire.
func TestRefusedScannerSeesNothing(t *testing.T) {
	for _, send := range []string{"", "\xd7PW", "GET / HTTP/1.1\r\n\r\n"} {
		x := meetStranger(t, "unix", &Config{Authorize: func(*Peer) error { return errors.New("no") }})
		x.Write([]byte(send))
		closeWrite(x.Conn)
		if said, err := x.outcome(t); len(said) > 0 || CodeOf(err) != PermissionDenied {
			t.Errorf("%q: the server answers %q and says %v", send, said, err)
		}
	}
}

func TestListenersRequirementIsRefusedByName(t *testing.T) {
	h := adversaryHello()
	h.required = []string{"time-travel"}
	told := make(chan string, 1)
	_, err := meetServer(t, nil, func(nc net.Conn) {
		nc.Write(helloBytes(h))
		io.ReadFull(nc, make([]byte, len(wireMagic)))
		in := NewFrameReader(nc, maxFrame)
		in.ReadFrame() // HELLO
		_, b, _ := in.ReadFrame()
		told <- string(b)
	})
	names(t, "dialler", err, FailedPrecondition, `feature "time-travel"`)
	if s := <-told; !strings.Contains(s, `feature "time-travel"`) {
		t.Errorf("the listener is told %q", s)
	}
}

func TestHandshakeEndsWithItsContext(t *testing.T) {
	for _, network := range []string{"unix", "pipe"} {
		for i := range 50 { // before the handshake, and at some time in it
			dialled, accepted := socketPair(t, network)
			ctx, cancel := context.WithCancel(context.Background())
			if i%2 == 0 {
				cancel()
			} else {
				go func() { io.ReadFull(accepted, make([]byte, 4)); cancel() }()
			}
			start := time.Now()
			_, err := NewConn(ctx, dialled, nil)
			if !errors.Is(err, context.Canceled) || CodeOf(err) != Canceled || !NotRun(err) {
				t.Errorf("%v", err)
			}
			if took := time.Since(start); took > adversaryPatience {
				t.Fatalf("took %v", took)
			}
			cancel()
			accepted.Close()
		}
	}
	// A deadline counts like the timeout, whichever comes first.
	dialled, accepted := socketPair(t, "unix")
	defer accepted.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := NewConn(ctx, dialled, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	// The listening side's, too.
	ctx, cancel = context.WithCancel(context.Background())
	cancel()
	dialled, accepted = socketPair(t, "unix")
	defer dialled.Close()
	if err := (&Server{Mux: NewMux()}).ServeConn(ctx, accepted); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestHelloThatDoesNotFitIsAnErrorOfThisSide(t *testing.T) {
	cfg := &Config{Versions: make([]int, 1100)}
	dialled, accepted := socketPair(t, "unix")
	defer accepted.Close()
	if _, err := NewConn(context.Background(), dialled, cfg); err == nil || !strings.Contains(err.Error(), "Config.Versions") {
		t.Error(err)
	}
}

// T15: a length that lies costs nothing before the other side is known.
func TestT15HandshakeAllocatesLittleForALengthThatLies(t *testing.T) {
	for _, length := range []uint32{4096, 1<<31 - 1, 1<<32 - 1} {
		n := allocated(func() {
			x := meetStranger(t, "unix", nil)
			x.Write(append([]byte(wireMagic), append(claim(length, FrameHello, 0, 0, 0), "ten bytes."...)...))
			closeWrite(x.Conn)
			if _, err := x.outcome(t); err == nil {
				t.Error("accepted")
			}
		})
		if n > 64<<10+poolSlack {
			t.Errorf("length %d: %d bytes allocated", length, n)
		}
	}
}
