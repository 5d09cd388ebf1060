package plugwire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/plugwire/plugwire/internal/batch"
)

// The end of a connection, section 11 of docs/PROTOCOL.md, where it takes more
// than one exchange.

// shutdown has the other end drain; it returns when the drain was received.
func (a *adversary) shutdown(ctx context.Context) <-chan error {
	done := make(chan error, 1)
	go func() { done <- a.c.Shutdown(ctx) }()
	if h, _ := a.next(FrameGoAway); h.Code != goAwayDrain {
		a.t.Fatalf("%+v instead of drain", h)
	}
	return done
}

func TestDrainAcceptsUntilTheAck(t *testing.T) {
	eachWay(t, func(t *testing.T, w way) {
		a := meet(t, w, nil, nil)
		done := a.shutdown(context.Background())
		a.send(cat(callFrame(1, "before"), callBegin(2, 8, "abc"), noteFrame("n"), goAway(goAwayAck), callPart(0, 2, "defgh"), cancelFrame(3)))
		got := map[uint32]string{}
		for range 2 {
			h, b := a.next(FrameReply)
			got[h.ID] = string(b)
		}
		if got[1] != "before" || got[2] != "abcdefgh" {
			t.Errorf("%q", got)
		}
		if h, _ := a.next(FrameGoAway); h.Code != goAwayDone {
			t.Errorf("%+v instead of done", h)
		}
		a.nc.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := <-a.notes; n != "n" {
			t.Error(n)
		}
	})
}

func TestFramesAfterTheAck(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name, closed string
		send         []byte
	}{
		{"CALL", "CALL after GOAWAY ack", callFrame(2, "x")},
		{"CALL with BEGIN", "CALL after GOAWAY ack", callBegin(2, 8, "x")},
		{"NOTIFY", "NOTIFY after GOAWAY ack", noteFrame("x")},
		{"NOTIFY with BEGIN", "NOTIFY after GOAWAY ack", frame(FrameNotify, bm, mNote, 0, uint32(9), "x")},
		{"ack", "ack twice", goAway(goAwayAck)},
		{"OPEN", "OPEN, a feature", frame(FrameOpen, 0, mEcho, 2)},
	} {
		t.Run(strings.ReplaceAll(row.name, " ", "-"), func(t *testing.T) {
			eachWay(t, func(t *testing.T, w way) {
				a := meet(t, w, nil, nil)
				done := a.shutdown(context.Background())
				a.send(cat(slowCall(1), goAway(goAwayAck), frame(FramePing, 0, 0, 0, "12345678"), report(0, 0), row.send))
				a.closed(row.closed)
				<-done
			})
		})
	}
}

// Done ends this side's calls as not run: who says it has ended all that it received.
func TestDoneEndsCallsAsNotRun(t *testing.T) {
	eachWay(t, func(t *testing.T, w way) {
		a := meet(t, w, nil, nil)
		one, two := a.calls(context.Background(), []byte("1")), a.calls(context.Background(), []byte("2"))
		a.next(FrameCall)
		a.next(FrameCall)
		a.send(goAway(goAwayDone))
		for _, c := range []<-chan outcome{one, two} {
			if o := a.await(c); CodeOf(o.err) != Unavailable || !NotRun(o.err) || !errors.Is(o.err, io.EOF) {
				t.Errorf("%v (not run: %v)", o.err, NotRun(o.err))
			}
		}
		if h, _ := a.next(FrameGoAway); h.Code != goAwayDone {
			t.Errorf("%+v instead of done", h)
		}
		a.nc.Close()
		a.ended("closed the connection")
		if !errors.Is(a.c.Err(), io.EOF) {
			t.Error(a.c.Err())
		}
	})
}

func TestFrameAfterDoneCloses(t *testing.T) {
	for _, after := range [][]byte{goAway(goAwayDone), callFrame(1, "x"), frame(FramePing, 0, 0, 0, "12345678")} {
		eachWay(t, func(t *testing.T, w way) {
			a := meet(t, w, nil, nil)
			start := time.Now()
			a.send(cat(goAway(goAwayDone), after))
			for {
				h, b, err := a.in.ReadFrame()
				if err != nil {
					break
				}
				if h.Type == FrameReply || h.Type == FramePong {
					t.Errorf("%s", describe(h, b))
				}
			}
			a.ended("")
			if took := time.Since(start); took > 3*time.Second {
				t.Errorf("closed after %v", took)
			}
		})
	}
}

// Failed ends the connection though its sender keeps it open, and nothing is answered.
func TestFailedEndsTheConnection(t *testing.T) {
	eachWay(t, func(t *testing.T, w way) {
		a := meet(t, w, nil, nil)
		done := a.calls(context.Background(), []byte("x"))
		a.next(FrameCall)
		a.send(goAway(goAwayFailed, uint16(DataLoss), "the dog ate it"))
		if o := a.await(done); o.err == nil || NotRun(o.err) || !strings.Contains(o.err.Error(), "the dog ate it") {
			t.Errorf("%v (not run: %v)", o.err, NotRun(o.err))
		}
		for {
			h, b, err := a.in.ReadFrame()
			if err != nil {
				break
			}
			if h.Type != FrameMethods { // which may have been on its way
				t.Errorf("answered %s", describe(h, b))
			}
		}
		a.ended("the dog ate it")
		if CodeOf(a.c.Err()) != DataLoss {
			t.Errorf("code %v", CodeOf(a.c.Err()))
		}
	})
}

// Close says done only when it has ended every call; and nothing follows what it says.
func TestCloseWhileCallsRun(t *testing.T) {
	for _, running := range []bool{false, true} {
		t.Run(fmt.Sprintf("running=%v", running), func(t *testing.T) {
			eachWay(t, func(t *testing.T, w way) {
				a := meet(t, w, nil, nil)
				if running {
					a.send(cat(slowCall(1), frame(FrameCall, 0, mWait, 2), callBegin(3, 8, "abc")))
					<-a.ran
					<-a.ran
				}
				closed := make(chan error, 1)
				go func() { closed <- a.c.Close() }()
				h, b := FrameHeader{}, []byte(nil)
				for h.Type != FrameGoAway {
					var err error
					if h, b, err = a.in.ReadFrame(); err != nil {
						t.Fatal(err)
					}
				}
				if want := map[bool]uint16{false: goAwayDone, true: goAwayFailed}[running]; h.Code != want {
					t.Errorf("%s", describe(h, b))
				}
				a.letGo()
				a.send(goAway(goAwayDone)) // or Close would wait for it where it cannot half-close
				if h, b, err := a.in.ReadFrame(); err == nil {
					t.Errorf("after GOAWAY came %s", describe(h, b))
				}
				a.nc.Close()
				if err := <-closed; err != nil {
					t.Error(err)
				}
				if !errors.Is(a.c.Err(), net.ErrClosed) {
					t.Error(a.c.Err())
				}
			})
		})
	}
}

// A drain that arrives while a large one-way message waits for room: the
// message is not begun behind the ack.
func TestNothingIsBegunBehindTheAck(t *testing.T) {
	eachWay(t, func(t *testing.T, w way) {
		announce := adversaryHello()
		announce.limits.oneWay = 64 << 20
		a := meet(t, w, nil, announce)
		large := make(chan error, 1)
		calls := []<-chan outcome{ // one is being written, another fills the buffer
			a.calls(context.Background(), largeRequest()),
			a.calls(context.Background(), largeRequest()),
		}
		full := 3*batch.High/4 - frameHeaderLen - announce.limits.frame // those who wait leave a quarter
		eventually(t, func() bool { a.c.out.Lock(); defer a.c.out.Unlock(); return a.c.out.Len() > full })
		go func() { large <- a.c.Notify(context.Background(), "theirs", largeRequest()) }()
		eventually(t, func() bool { a.c.out.Lock(); defer a.c.out.Unlock(); return a.c.notes.large })
		a.send(goAway(goAwayDrain))
		eventually(t, func() bool { a.c.out.Lock(); defer a.c.out.Unlock(); return a.c.life.theyDrain })
		acked, begun, whole := false, false, false
		started, ended := 0, 0 // of the calls: the other one may have found no room either
		for !acked || ended < started {
			h, _ := a.next(FrameCall, FrameNotify, FrameGoAway)
			switch {
			case h.Type == FrameGoAway && h.Code == goAwayAck:
				acked = true
			case acked && h.Flags&FlagBegin != 0:
				t.Fatalf("%+v behind the ack", h)
			case h.Type == FrameNotify: // it found room before the drain came
				begun, whole = true, h.Flags&FlagMore == 0
			case h.Type == FrameCall && h.Flags&FlagMore == 0:
				a.send(reply(h.ID, ""))
				ended++
			case h.Type == FrameCall && h.Flags&FlagBegin != 0:
				started++
			}
		}
		for _, c := range calls {
			if o := a.await(c); o.err == nil {
				ended--
			} else if CodeOf(o.err) != Unavailable || !NotRun(o.err) {
				t.Error(o.err)
			}
		}
		if ended != 0 {
			t.Errorf("%d calls that were sent failed", ended)
		}
		for begun && !whole {
			h, _ := a.next(FrameNotify)
			whole = h.Flags&FlagMore == 0
		}
		if err := <-large; begun && err != nil || !begun && (CodeOf(err) != Unavailable || !NotRun(err)) {
			t.Errorf("the message: %v (begun: %v)", err, begun)
		}
	})
}

// An aborted one-way message counts as handled when those before it are.
func TestAbortedMessageCountsInItsTurn(t *testing.T) {
	eachWay(t, func(t *testing.T, w way) {
		a := meet(t, w, nil, nil)
		a.send(frame(FrameNotify, 0, mSlow, 0, "x"))
		<-a.ran
		a.send(cat(frame(FrameNotify, bm, mNote, 0, uint32(3000), "ab"), abortFrame(0), ask(), frame(FramePing, 0, 0, 0, "12345678")))
		for {
			h, b := a.next(FramePong, FrameCredit)
			if h.Type == FrameCredit {
				t.Fatalf("%s before the handler has returned", describe(h, b))
			}
			if string(b) == "12345678" {
				break
			}
		}
		if a.c.out.Lock(); a.c.oneWay.handledMsgs != 0 {
			t.Errorf("%d messages count as handled", a.c.oneWay.handledMsgs)
		}
		a.c.out.Unlock()
		a.letGo()
		if h, b := a.next(FrameCredit); describe(h, b) != "CREDIT 0 0 #0 3001/2" {
			t.Errorf("%s", describe(h, b))
		}
	})
}

// Credit going back, or beyond what was sent.
func TestCreditNeverGoesBack(t *testing.T) {
	for _, row := range []struct {
		name  string
		again []byte
		bad   bool
	}{
		{"the same", report(5, 1), false},
		{"all", report(10, 2), false},
		{"fewer bytes", report(4, 1), true},
		{"fewer messages", report(5, 0), true},
		{"more bytes than sent", report(11, 2), true},
		{"more messages than sent", report(10, 3), true},
	} {
		t.Run(strings.ReplaceAll(row.name, " ", "-"), func(t *testing.T) {
			eachWay(t, func(t *testing.T, w way) {
				a := meet(t, w, nil, nil)
				for range 2 {
					if err := a.c.Notify(context.Background(), "theirs", []byte("12345")); err != nil {
						t.Fatal(err)
					}
					a.next(FrameNotify)
				}
				a.send(cat(report(5, 1), row.again))
				if row.bad {
					a.closed("CREDIT for")
				} else {
					a.alive()
				}
			})
		})
	}
}

// A lone caller reads its own reply: what it meets there is handled as elsewhere.
func TestLoneCallerMeetsAViolation(t *testing.T) {
	a := meet(t, way{"unix", true}, nil, nil)
	for i := range 20 { // let the connection lend out its reading role
		done := a.calls(context.Background(), nil)
		h, _ := a.next(FrameCall)
		a.send(reply(h.ID, fmt.Sprint(i)))
		a.await(done)
	}
	done := a.calls(context.Background(), nil)
	a.next(FrameCall)
	a.send(frame(0x7f, 0, 0, 0))
	a.closed("unknown frame")
	a.await(done)
	eventually(t, func() bool { return !a.c.watched.Load() })
}

// What the other side sent before it closed counts, also when this side finds
// out by writing: a reply that has arrived is not lost, nor is a reason.
func TestWriteThatFailsLosesNothingThatArrived(t *testing.T) {
	for i := range 200 {
		a := meet(t, way{"unix", true}, nil, nil)
		done := a.calls(context.Background(), []byte("x"))
		a.next(FrameCall)
		writes := make(chan struct{})
		go func() {
			defer close(writes)
			for a.c.Notify(context.Background(), "theirs", []byte("n")) == nil {
			}
		}()
		a.send(cat(reply(1, "made it"), goAway(goAwayFailed, uint16(DataLoss), "the dog ate it")))
		a.nc.Close()
		if o := a.await(done); string(o.reply) != "made it" {
			t.Fatalf("%d: the reply is lost: %v", i, o.err)
		}
		a.ended("the dog ate it")
		<-writes
		if t.Failed() {
			t.Fatalf("at try %d", i)
		}
	}
}
