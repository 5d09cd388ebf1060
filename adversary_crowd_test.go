package plugwire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// What a crowd of hostile peers can do to a Server, and to those who are not.

const crowd = 1000

// gather dials count times and has each connection do something, as by the
// hands of several strangers. The connections stay open until the test ends.
func gather(t testing.TB, addr string, count int, do func(nc net.Conn) error) (conns []net.Conn) {
	t.Helper()
	cfg := testConfig(nil).withDefaults()
	tr, err := cfg.transportOf("dial", addr)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	for part := range cap(errs) {
		wg.Go(func() {
			for i := part; i < count; i += cap(errs) {
				ctx, cancel := context.WithTimeout(background, adversaryPatience)
				nc, err := tr.Dial(ctx, addr, cfg)
				cancel()
				if err == nil {
					mu.Lock()
					conns = append(conns, nc)
					mu.Unlock()
					nc.SetDeadline(time.Now().Add(4 * adversaryPatience))
					err = do(nc)
				}
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	t.Cleanup(func() {
		for _, nc := range conns {
			nc.Close()
		}
	})
	close(errs)
	for err := range errs {
		if errors.Is(err, syscall.EMFILE) {
			t.Skipf("%d connections take more descriptors than there are: %v", count, err)
		}
		t.Fatal(err)
	}
	return conns
}

// says is what a stranger does that sends b and nothing more. That the server
// ends it meanwhile is no error.
func says(b []byte) func(net.Conn) error {
	return func(nc net.Conn) error {
		if len(b) > 0 {
			nc.Write(b)
		}
		return nil
	}
}

// joins is what a stranger does that is let in, and then sends b.
func joins(h *hello, b []byte) func(net.Conn) error {
	return func(nc net.Conn) error {
		nc.Write(helloBytes(h))
		var head [len(wireMagic) + frameHeaderLen]byte
		if _, err := io.ReadFull(nc, head[:]); err != nil {
			return err
		}
		frame, err := ParseFrameHeader(head[len(wireMagic):])
		if err != nil || frame.Type != FrameHello {
			return fmt.Errorf("%v, %v instead of HELLO", frame.Type, err)
		}
		if _, err := io.CopyN(io.Discard, nc, int64(frame.Length)); err != nil {
			return err
		}
		nc.Write(b)
		return nil
	}
}

// goodClients connect and call one after the other; the longest that one took to
// connect is returned.
func goodClients(t *testing.T, addr string, cfg *Config, count int) (worst time.Duration) {
	t.Helper()
	for i := range count {
		start := time.Now()
		ctx, cancel := context.WithTimeout(background, adversaryPatience)
		c, err := Dial(ctx, addr, testConfig(cfg))
		cancel()
		if err != nil {
			t.Fatalf("a good client cannot connect: %v", err)
		}
		worst = max(worst, time.Since(start))
		if err := checkCall(background, c, 100, uint64(i)); err != nil {
			t.Errorf("a good client's call: %v", err)
		}
		closeBoth(c)
	}
	return worst
}

// A stall is a way not to finish a handshake.
type stall struct {
	name string
	send []byte  // what one who stalls sends
	cfg  *Config // of the server and of good clients
}

// T17: whatever way they stall, a thousand do not keep a good client out.
func TestT17StalledHandshakesKeepNobodyOut(t *testing.T) {
	opening := helloBytes(adversaryHello())
	for _, row := range append([]stall{
		{name: "nothing"},
		{name: "half a magic", send: opening[:2]},
		{name: "magic alone", send: opening[:len(wireMagic)]},
		{name: "half a HELLO", send: opening[:len(opening)/2]},
	}, stallsOverTLS(t)...) {
		t.Run(strings.ReplaceAll(row.name, " ", "-"), func(t *testing.T) {
			watchdog(t)
			cfg := testConfig(row.cfg)
			cfg.HandshakeTimeout = time.Minute
			s, addr, _ := served(t, "unix", echoMux(nil), cfg)
			gather(t, addr, crowd*9/10, says(row.send))
			worst := time.Duration(0)
			for range 10 { // the last come while good clients do
				gather(t, addr, crowd/100, says(row.send))
				worst = max(worst, goodClients(t, addr, row.cfg, 2))
			}
			t.Logf("beside %d who stall, the slowest of 20 good clients connected within %v", crowd, worst)
			if worst > 10*time.Second { // 100 ms on a machine that has time
				t.Errorf("the slowest of 20 good clients took %v", worst)
			}
			until(t, "those who stall to be as few as they may", func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				return len(s.handshakes) <= defaultMaxHandshakes && len(s.accepted) == len(s.handshakes)
			})
		})
	}
}

// T17: it is the oldest that goes, when the newest comes, and connections that
// are through keep their places.
func TestT17TheOldestHandshakeMakesRoom(t *testing.T) {
	t.Parallel()
	for name, limits := range map[string]Limits{
		"MaxHandshakes": {MaxHandshakes: 4},
		"MaxConns":      {MaxConns: 6}, // of which two are taken
	} {
		t.Run(name, func(t *testing.T) {
			watchdog(t)
			s, addr, _ := served(t, "unix", echoMux(nil), &Config{HandshakeTimeout: time.Minute, Limits: limits})
			through := []*Conn{dial(t, addr, nil), dial(t, addr, nil)}
			pending := func(n int) {
				t.Helper()
				until(t, "handshakes", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.handshakes) == n && len(s.accepted) == n })
			}
			until(t, "those two", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.conns) == 2 })
			var stalled []net.Conn
			for i := range 4 {
				stalled = append(stalled, gather(t, addr, 1, says([]byte(wireMagic)))...)
				pending(i + 1)
			}
			ended := func(nc net.Conn, patience time.Duration) bool {
				nc.SetReadDeadline(time.Now().Add(patience))
				n, err := nc.Read(make([]byte, 1))
				if n > 0 {
					t.Error("who is ended is told something")
				}
				return !isTimeout(err)
			}
			for i := range 3 {
				goodClients(t, addr, nil, 1) // which is served in the place of the oldest
				pending(3)                   // as soon as it is among the connections
				until(t, "its end", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.conns) == 2 })
				gather(t, addr, 1, says(nil))
				pending(4)
				for j, nc := range stalled {
					patience := adversaryPatience
					if j > i { // what should not come is not waited for as long
						patience = 50 * time.Millisecond
					}
					if got, want := ended(nc, patience), j <= i; got != want {
						t.Errorf("after %d more, handshake %d has ended: %v", i+1, j, got)
					}
				}
			}
			for _, c := range through {
				if err := checkCall(background, c, 100, 1); err != nil {
					t.Errorf("a connection that was through: %v", err)
				}
			}
		})
	}
}

// T17: nor do those keep a place who are not let in and take their time to hear it.
func TestT17RefusedPeersMakeRoom(t *testing.T) {
	t.Parallel()
	watchdog(t)
	var open atomic.Bool
	var refused atomic.Int32
	_, addr, _ := served(t, "unix", echoMux(nil), &Config{Limits: Limits{MaxHandshakes: 4}, Authorize: func(*Peer) error {
		if open.Load() {
			return nil
		}
		refused.Add(1)
		return errors.New("not yet")
	}})
	start := time.Now()
	stalled := gather(t, addr, 4, says(nil))
	until(t, "them", func() bool { return refused.Load() == 4 })
	open.Store(true)
	goodClients(t, addr, nil, 1)
	var ended atomic.Int32
	var wg sync.WaitGroup
	for _, nc := range stalled {
		nc.SetReadDeadline(start.Add(refuseTimeout * 3 / 4))
		wg.Go(func() {
			if _, err := nc.Read(make([]byte, 1)); !isTimeout(err) {
				ended.Add(1)
			}
		})
	}
	wg.Wait()
	if n := ended.Load(); n != 1 {
		t.Errorf("%d of those who are refused made room", n)
	}
}

// T16: who has not shown who it is owns little. What is measured is the heap of
// both ends of a connection, without the goroutines' stacks.
func TestT16StrangersOwnLittle(t *testing.T) {
	watchdog(t)
	const ends = 4 << 10 // what both ends' net.Conn, contexts and timers may take, beside 4 KiB
	opening := append([]byte(wireMagic), claim(maxHello, FrameHello, 0, 0, 0)...)
	opening = append(opening, filler[:maxHello/2]...)
	s, addr, _ := served(t, "unix", echoMux(nil), &Config{HandshakeTimeout: time.Minute, Limits: Limits{MaxHandshakes: 2 * crowd}})
	goodClients(t, addr, nil, 1)
	before := heap()
	gather(t, addr, crowd, says(opening))
	until(t, "the crowd", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.handshakes) == crowd })
	each := (int64(heap()) - int64(before)) / crowd
	t.Logf("each of %d connections with half a HELLO takes %d bytes of heap, both ends together", crowd, each)
	if each > maxHello+ends {
		t.Errorf("%d bytes each", each)
	}
	goodClients(t, addr, nil, 5)
}

// crowdHello is what a crowd announces that is let in.
func crowdHello() *hello {
	h := streamHello()
	h.limits.frame, h.limits.streamWindow = maxFrame, 1<<20
	return h
}

// crowdSends are the ways to begin a message of total bytes and to send crowdPart of it.
const crowdPart = 256 << 10

var crowdSends = map[string]func(total uint32) []byte{
	"CALL":   func(total uint32) []byte { return crowdMessage(FrameCall, mEcho, 1, total) },
	"NOTIFY": func(total uint32) []byte { return crowdMessage(FrameNotify, mEcho, 0, total) },
	"DATA": func(total uint32) []byte {
		return append(frame(FrameOpen, 0, mCrowdStream, 1), crowdMessage(FrameData, 0, 1, total)...)
	},
}

// crowdMessage is the beginning of a message: four frames of 64 KiB, or somewhat less.
func crowdMessage(typ FrameType, method uint16, id, total uint32) []byte {
	part := make([]byte, crowdPart/4-4)
	b := frame(typ, bm, method, id, total, part)
	for range 3 {
		b = append(b, frame(typ, FlagMore, 0, id, part)...)
	}
	return b
}

// crowdMux serves "echo", "hold", a stream that receives nothing, and "check".
func crowdMux(release <-chan struct{}) *Mux {
	m := NewMux()
	m.Handle("echo", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) { return append(reply, r.Payload()...), nil }))
	m.HandleStream("hold", func(s *Stream) error {
		select {
		case <-release:
		case <-s.Context().Done():
		}
		return nil
	})
	m.HandleFunc("check", func(_ context.Context, b []byte) ([]byte, error) { _, err := unseal(b); return b, err })
	return m
}

const mCrowdStream = 2

// T16: a thousand that each begin a message of 64 MiB and send 256 KiB of it.
func TestT16ACrowdOfLargeMessagesStaysWithinTheBudget(t *testing.T) {
	const total, most = 64 << 20, 96 << 20
	for name, sends := range crowdSends {
		t.Run(name, func(t *testing.T) {
			watchdog(t)
			release := make(chan struct{})
			s, addr, _ := served(t, "unix", crowdMux(release), &Config{Limits: Limits{MaxServerBytes: most}})
			b := s.config().budget
			good := dial(t, addr, nil)
			if err := checkCall(background, good, 100, 1); err != nil {
				t.Fatal(err)
			}
			before := heap()
			conns := gather(t, addr, crowd, joins(crowdHello(), sends(total)))
			room := crowdPart
			if name == "CALL" { // refused at its beginning, so that it leaves room for smaller ones
				room = total
			}
			until(t, "the budget to be used up", func() bool { return !b.fits(room) })
			for seed := range uint64(100) { // while the rest of it arrives
				if err := checkCall(background, good, 1000, seed); err != nil {
					t.Errorf("a good client's call: %v", err)
				}
			}
			goodClients(t, addr, nil, 5)
			if err := checkCall(background, good, 1<<20, 1); name == "CALL" && err != nil {
				t.Errorf("a call that fits: %v", err)
			} else if name != "CALL" {
				wantCode(t, err, ResourceExhausted, true)
			}
			grown := int64(heap()) - int64(before)
			t.Logf("the heap has grown by %d MiB, the budget is %d MiB, of which %d are used", grown>>20, most>>20, b.used.Load()>>20)
			if used := b.used.Load(); used > most {
				t.Errorf("%d bytes are counted", used)
			}
			if grown > most*5/4+crowd*64<<10 { // buffers that are not quite full, and the connections themselves
				t.Errorf("%d MiB of heap", grown>>20)
			}
			for _, nc := range conns {
				nc.Close()
			}
			until(t, "the bytes to be given back", func() bool { return b.used.Load() == 0 })
			if err := checkCall(background, good, 1<<20, 1); err != nil {
				t.Errorf("a large call after the crowd has left: %v", err)
			}
		})
	}
}
