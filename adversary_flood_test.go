package plugwire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// heap returns the bytes in use after a collection.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A hundred thousand of each, while the adversary reads nothing: what the other
// end holds for them stays bounded, also when nothing leaves its writer.
func TestFloodsWithAStuckWriter(t *testing.T) {
	count := longRun(40_000, 100_000)
	for _, row := range []struct {
		name   string
		frames []byte
		closed string // what may end it: the slot is held until the refusal has left
	}{
		{"PING", frame(FramePing, 0, 0, 0, "12345678"), "flood"},
		{"PONG", frame(FramePong, 0, 0, 0, "12345678"), "flood"},
		{"CREDIT asked for", ask(), "flood"},
		{"CREDIT report", report(0, 0), "flood"},
		{"CANCEL", cancelFrame(1), "flood"},
		{"METHODS empty", frame(FrameMethods, 0, 0, 0), "flood"},
		{"METHODS again", frame(FrameMethods, 0, 0, 0, methodEntry(1, "m1")), "flood"},
		{"METHODS without an end", frame(FrameMethods, FlagMore, 0, 0, methodEntry(1, "m1")), "flood"},
		{"drain", goAway(1), "flood"},
		{"skippable", frame(0x80, 0xff, 0, 0, "x"), "flood"},
		{"NOTIFY by an unknown name", frame(FrameNotify, 0, 0, 0, uint8(1), "x"), ""},
		{"NOTIFY aborted", cat(frame(FrameNotify, bm, mNote, 0, uint32(4000)), abortFrame(0)), "flood"},
		{"CALL aborted", cat(callBegin(1, 8000, "x"), abortFrame(1)), "in use"},
		{"CALL by an unknown name", frame(FrameCall, 0, 0, 1, uint8(1), "x"), "in use"},
		{"CALL too late", frame(FrameCall, FlagDeadline, mEcho, 1, uint64(0)), "in use"},
		{"CALL and CANCEL", cat(callFrame(1, "x"), cancelFrame(1)), "in use"},
		{"OPEN and RESET", cat(openFrame(sWait, 1), resetFrame(1)), "in use"},
		{"OPEN by an unknown name", cat(frame(FrameOpen, 0, 0, 1, uint8(1), "x"), closeFrame(1)), "in use"},
		{"OPEN and DATA", cat(openFrame(sRecv, 1), data(1, ""), closeFrame(1)), "in use"},
		{"REPLY to nothing", frame(FrameReply, FlagBack, 0, 1), "nothing was asked"},
		{"CREDIT of no stream", streamCredit(1, 1), "no stream"},
	} {
		t.Run(strings.ReplaceAll(row.name, " ", "-"), func(t *testing.T) {
			cfg := streamLimits(nil)
			cfg.CloseTimeout = 5 * time.Millisecond
			a := meetStreams(t, way{"pipe", true}, cfg, nil)
			a.send(manyMethods(1, 4000)) // what METHODS frames could make it copy
			before := heap()
			const batch = 500
			frames := bytes.Repeat(row.frames, batch)
			for range count / batch {
				if _, err := a.nc.Write(frames); err != nil {
					break
				}
			}
			a.c.out.Lock()
			pending := a.c.out.Len()
			a.c.out.Unlock()
			if after := heap(); after > before+8<<20 {
				t.Errorf("%d MiB more are in use", (after-before)>>20)
			}
			if pending > 400<<10 {
				t.Errorf("%d KiB wait to be sent", pending>>10)
			}
			if err := a.c.Err(); err != nil {
				if row.closed == "" || !strings.Contains(err.Error(), row.closed) {
					t.Errorf("closed: %v", err)
				}
				return
			}
			a.send(frame(FramePing, 0, 0, 0, "the last"))
			for {
				if _, b := a.next(FramePong); string(b) == "the last" {
					break
				}
			}
		})
	}
}

// Cancelling quickly frees nothing: a slot, and its share of the quota, is held
// until the handler has returned.
func TestCancelledCallsKeepTheirSlots(t *testing.T) {
	const slots = 8
	rounds := 2500
	if underWine { // where a round trip takes half a millisecond
		rounds = 100
	}
	a := meet(t, way{"unix", true}, nil, nil)
	var running, most atomic.Int64
	a.c.mux.Handle("counted", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		n := running.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-r.Context().Done()
		running.Add(-1)
		return nil, r.Context().Err()
	}))
	pair := func(id uint32) []byte {
		return cat(frame(FrameCall, 0, 0, id, uint8(7), "counted"), cancelFrame(id), cancelFrame(id))
	}
	for id := uint32(1); id <= slots; id++ {
		a.send(pair(id))
	}
	for range slots * rounds {
		h, b := a.next(FrameError)
		if Code(h.Code) != Canceled {
			t.Fatalf("%s", describe(h, b))
		}
		a.send(pair(h.ID))
	}
	if n := most.Load(); n > slots {
		t.Errorf("%d handlers at the same time", n)
	}
	for range slots {
		a.next(FrameError)
	}
	for id := uint32(1); id <= slots; id++ {
		a.send(slowCall(id))
		<-a.ran
	}
	a.send(bytes.Repeat(cancelFrame(3), 10_000))
	a.send(slowCall(3))
	a.closed("slot 3, which is in use")
}

// T15: a length that lies costs nothing, whatever frame it is of.
func TestT15ConnAllocatesLittleForALengthThatLies(t *testing.T) {
	for _, row := range [][]byte{
		claim(math.MaxUint32, FrameCall, 0, mEcho, 1),
		claim(math.MaxUint32, FrameMethods, 0, 0, 0),
		claim(math.MaxInt32, FrameNotify, 0, mNote, 0),
		claim(65537, 0x80, 0, 0, 0),
	} {
		least := uint64(math.MaxUint64)
		for range 3 {
			a := meet(t, way{"unix", true}, &Config{}, nil)
			a.alive()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			a.nc.Write(append(row, "ten bytes."...))
			<-a.c.Done()
			runtime.ReadMemStats(&after)
			least = min(least, after.TotalAlloc-before.TotalAlloc)
			a.closed("MaxFrame is 65536")
		}
		if least > 64<<10+poolSlack {
			t.Errorf("%x: %d bytes allocated", row, least)
		}
	}
}

// T15: a message that announces all there may be and then stalls holds what came of it.
func TestT15StalledMessagesHoldWhatArrived(t *testing.T) {
	const total, sent = defaultMaxMessage, 100_000
	part := make([]byte, sent/2)
	for name, frames := range map[string][2][]byte{
		"CALL":   {frame(FrameCall, bm, mEcho, 1, uint32(total), part), frame(FrameCall, FlagMore, 0, 1, part)},
		"NOTIFY": {frame(FrameNotify, bm, mNote, 0, uint32(total), part), frame(FrameNotify, FlagMore, 0, 0, part)},
		"REPLY":  {frame(FrameReply, bm|FlagBack, 0, 1, uint32(total), part), frame(FrameReply, FlagMore|FlagBack, 0, 1, part)},
	} {
		t.Run(name, func(t *testing.T) {
			a := meet(t, way{"unix", true}, &Config{}, nil)
			if name == "REPLY" {
				done := a.calls(context.Background(), nil)
				a.next(FrameCall)
				defer func() { a.nc.Close(); a.await(done) }()
			}
			a.send(frame(FramePing, 0, 0, 0, "12345678"))
			a.next(FramePong)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			a.nc.Write(frames[0])
			a.nc.Write(frames[1])
			a.send(frame(FramePing, 0, 0, 0, "abcdefgh"))
			for b := []byte(nil); string(b) != "abcdefgh"; {
				_, b = a.next(FramePong)
			}
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 3*sent+64<<10+poolSlack {
				t.Errorf("%d bytes allocated for %d that arrived", n, sent)
			}
		})
	}
}

// B1: every golden frame, cut at every offset, and then the end.
func TestGoldenFramesCutOnALiveConnection(t *testing.T) {
	entries, _ := readGolden(t)
	type piece struct {
		name string
		b    []byte
	}
	var pieces []piece
	for _, e := range entries {
		if e.frame && e.header.Type != FrameHello {
			for cut := range len(e.wire) + 1 {
				pieces = append(pieces, piece{fmt.Sprintf("%s cut at %d", e.name, cut), e.wire[:cut]})
			}
		}
	}
	var wg sync.WaitGroup
	const lanes = 8
	for lane := range lanes {
		wg.Go(func() {
			for i := lane; i < len(pieces); i += lanes {
				p := pieces[i]
				cutLive(t, p.name, p.b, i%2 == 0)
			}
		})
	}
	wg.Wait()
	t.Logf("%d pieces", len(pieces))
}

// cutLive sends b to a live connection, which has a call under way, and closes.
func cutLive(t *testing.T, name string, b []byte, unix bool) {
	w := way{"pipe", true}
	if unix {
		w.network = "unix"
	}
	a := meet(t, w, &Config{}, nil)
	defer a.close()
	ctx, cancel := context.WithTimeout(context.Background(), adversaryPatience)
	defer cancel()
	done := a.calls(ctx, nil)
	a.next(FrameCall)
	a.send(b)
	a.nc.Close()
	select {
	case <-a.c.Done():
	case <-ctx.Done():
		t.Errorf("%s: the connection goes on", name)
		return
	}
	if err := a.c.Err(); !errors.As(err, new(*Error)) || CodeOf(err) == OK {
		t.Errorf("%s: %T %v", name, err, err)
	}
	if o := <-done; errors.Is(o.err, context.DeadlineExceeded) && ctx.Err() != nil {
		t.Errorf("%s: the call hangs", name)
	}
}

// A connection that a Server hands out in OnConn may be used at once.
func TestConnIsUsableInOnConn(t *testing.T) {
	for range 50 {
		a, b := socketPair(t, "unix")
		pinged := make(chan error, 1)
		s := &Server{Mux: NewMux(), Config: &Config{OnConn: func(c *Conn) {
			started := make(chan struct{})
			go func() {
				close(started)
				_, err := c.Ping(context.Background())
				pinged <- err
			}()
			<-started
			time.Sleep(50 * time.Microsecond) // either order is right
		}}}
		go s.ServeConn(context.Background(), b)
		c, err := NewConn(context.Background(), a, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := <-pinged; err != nil {
			t.Error(err)
		}
		c.Close()
		s.Close()
	}
}

// Whoever announces no slots serves no calls.
func TestSideWithoutAMuxServesNoCalls(t *testing.T) {
	dialled, accepted := socketPair(t, "unix")
	defer accepted.Close()
	got := make(chan *Conn, 1)
	go func() {
		c, err := NewConn(context.Background(), dialled, nil)
		if err != nil {
			t.Error(err)
		}
		got <- c
	}()
	a := newAdversary(t)
	a.nc, a.in = accepted, NewFrameReader(accepted, maxFrame)
	accepted.SetDeadline(time.Now().Add(adversaryPatience))
	a.readHello()
	if a.theirs.limits.calls != 0 {
		t.Errorf("it announces %d slots", a.theirs.limits.calls)
	}
	a.send(helloBytes(adversaryHello()))
	a.c = <-got
	a.send(frame(FrameCall, 0, 0, 1, uint8(1), "x"))
	a.closed("CALL in slot 1, MaxCalls is 0")
}

// Slots beyond what this side could use are no error and cost nothing.
func TestManySlotsCostNothing(t *testing.T) {
	h := adversaryHello()
	h.limits.calls = maxWireLen
	var a *adversary
	n := allocated(func() { a = meet(t, way{"unix", false}, nil, h) })
	if n > 512<<10 {
		t.Errorf("%d KiB allocated", n>>10)
	}
	a.alive()
}

// METHODS in pieces: nothing of the table counts before its end.
func TestMethodsInPieces(t *testing.T) {
	eachWay(t, func(t *testing.T, w way) {
		a := meet(t, w, nil, nil)
		a.send(frame(FrameMethods, FlagMore, 0, 0, methodEntry(7, "seven")))
		a.alive()
		if m := a.c.Methods(); len(m) != 0 {
			t.Errorf("methods %q", m)
		}
		done := a.calls(context.Background(), []byte("x"))
		h, b := a.next(FrameCall)
		if h.Code != 0 || string(b) != "\x06theirsx" {
			t.Errorf("%+v %q", h, b)
		}
		a.send(reply(h.ID, ""))
		a.await(done)
		a.send(cat(frame(FrameMethods, 0, 0, 0, methodEntry(9, "theirs")), frame(FrameMethods, 0, 0, 0, methodEntry(10, "ten"))))
		a.alive()
		if m := a.c.Methods(); strings.Join(m, " ") != "seven theirs ten" {
			t.Errorf("methods %q", m)
		}
		done = a.calls(context.Background(), []byte("x"))
		if h, b = a.next(FrameCall); h.Code != 9 || string(b) != "x" {
			t.Errorf("%+v %q", h, b)
		}
		a.send(reply(h.ID, ""))
		a.await(done)
		if _, err := a.c.Call(context.Background(), "no such", nil); CodeOf(err) != Unimplemented || !NotRun(err) {
			t.Error(err)
		}
	})
}
