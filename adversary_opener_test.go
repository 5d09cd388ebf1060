package plugwire

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// An ending is a row of the opener's tables: what the adversary answers to the
// call that it was sent in slot 1, and what becomes of the call.
type ending struct {
	name   string
	large  bool   // the request is incomplete, and the adversary does not read the rest
	noCall bool   // there is no call
	send   []byte // frames with BACK that name the slot
	reply  string
	code   Code // of the call's error
	notRun bool
	closed string
}

func reply(id uint32, payload string) []byte { return frame(FrameReply, FlagBack, 0, id, payload) }
func replyBegin(total uint32, payload string) []byte {
	return frame(FrameReply, FlagBack|bm, 0, 1, total, payload)
}
func replyPart(flags FrameFlags, payload string) []byte {
	return frame(FrameReply, FlagBack|flags, 0, 1, payload)
}
func errorFrame(flags FrameFlags, code uint16) []byte {
	return frame(FrameError, flags, code, 1, appendErrorPayload(nil, "no", nil))
}
func abortBack(id uint32) []byte { return frame(FrameAbort, FlagBack, 1, id) }

// The opener's view, section 7.4 of docs/PROTOCOL.md, row by row.
var openerEndings = []ending{
	{name: "free REPLY", noCall: true, send: reply(1, "x"), closed: "REPLY in slot 1"},
	{name: "free REPLY with BEGIN", noCall: true, send: replyBegin(8, "x"), closed: "REPLY in slot 1"},
	{name: "free REPLY continuation", noCall: true, send: replyPart(FlagMore, "x"), closed: "REPLY in slot 1"},
	{name: "free ERROR", noCall: true, send: errorFrame(FlagBack, 5), closed: "ERROR in slot 1"},
	{name: "free ABORT", noCall: true, send: abortBack(1), closed: "ABORT in slot 1"},
	{name: "id 0 REPLY", send: reply(0, "x"), closed: "REPLY in slot 0"},
	{name: "id 0 ABORT", send: abortBack(0), closed: "ABORT in slot 0"},
	{name: "id of another slot", send: reply(2, "x"), closed: "REPLY in slot 2"},
	{name: "id beyond the limit", send: reply(9, "x"), closed: "REPLY in slot 9"},
	{name: "id 2^32-1 REPLY", send: reply(math.MaxUint32, "x"), closed: "REPLY in slot 4294967295"},
	{name: "id 2^32-1 ABORT", send: abortBack(math.MaxUint32), closed: "ABORT in slot 4294967295"},

	{name: "sending REPLY", large: true, send: reply(1, "early"), reply: "early"},
	{name: "sending REPLY in pieces", large: true, send: cat(replyBegin(5, "ea"), replyPart(0, "rly")), reply: "early"},
	{name: "sending REPLY continuation", large: true, send: replyPart(FlagMore, "x"), closed: "not begun"},
	{name: "sending ERROR", large: true, send: errorFrame(FlagBack, 8), code: ResourceExhausted},
	{name: "sending ERROR with NOTRUN", large: true, send: errorFrame(nr, 8), code: ResourceExhausted, notRun: true},
	{name: "sending ABORT", large: true, send: abortBack(1), closed: "ABORT in slot 1"},
	{name: "sending REPLY aborted then ERROR", large: true, send: cat(replyBegin(5, "ea"), abortBack(1), errorFrame(FlagBack, 10)), code: Aborted},
	{name: "ended early REPLY", large: true, send: cat(reply(1, "early"), reply(1, "again")), closed: "REPLY in slot 1"},
	{name: "ended early ERROR", large: true, send: cat(reply(1, "early"), errorFrame(FlagBack, 5)), closed: "ERROR in slot 1"},
	{name: "ended early ABORT", large: true, send: cat(reply(1, "early"), abortBack(1)), closed: "ABORT in slot 1"},

	{name: "waiting REPLY", send: reply(1, "good"), reply: "good"},
	{name: "waiting REPLY that is empty", send: reply(1, "")},
	{name: "waiting REPLY in pieces", send: cat(replyBegin(6, "a"), replyPart(FlagMore, "bcd"), replyPart(0, "ef")), reply: "abcdef"},
	{name: "waiting REPLY with BEGIN alone first", send: cat(replyBegin(6, ""), replyPart(0, "abcdef")), reply: "abcdef"},
	{name: "waiting REPLY continuation", send: replyPart(FlagMore, "x"), closed: "not begun"},
	{name: "waiting REPLY without BACK", send: frame(FrameReply, 0, 0, 1, "x"), closed: "REPLY without BACK"},
	{name: "waiting ERROR", send: errorFrame(FlagBack, 5), code: NotFound},
	{name: "waiting ERROR with NOTRUN", send: errorFrame(nr, 12), code: Unimplemented, notRun: true},
	{name: "waiting ERROR of the application", send: errorFrame(FlagBack, 65535), code: Code(65535)},
	{name: "waiting ERROR with status 0", send: errorFrame(FlagBack, 0), code: Unknown},
	{name: "waiting ERROR without BACK", send: errorFrame(0, 5), closed: "ERROR without BACK"},
	{name: "waiting ERROR of 0 bytes", send: frame(FrameError, FlagBack, 5, 1), closed: "shorter"},
	{name: "waiting ERROR of 1 byte", send: frame(FrameError, FlagBack, 5, 1, "x"), closed: "shorter"},
	{name: "waiting ERROR whose text is longer", send: frame(FrameError, FlagBack, 5, 1, uint16(3), "no"), closed: "shorter"},
	{name: "waiting ERROR with BEGIN", send: errorFrame(FlagBack|bm, 5), closed: "ERROR frame with flag"},
	{name: "waiting ABORT", send: abortBack(1), closed: "ABORT in slot 1"},
	{name: "waiting REPLY with META", send: frame(FrameReply, FlagBack|FlagMeta, 0, 1, uint16(0)), closed: "metadata"},
	{name: "waiting ERROR with META", send: frame(FrameError, FlagBack|FlagMeta, 5, 1, uint16(0), uint16(0)), closed: "metadata"},
	{name: "waiting DATA", send: frame(FrameData, FlagBack, 0, 1, "x"), closed: "DATA, a feature"},
	{name: "waiting CLOSE", send: frame(FrameClose, FlagBack|FlagLast, 0, 1), closed: "CLOSE, a feature"},

	{name: "replying REPLY with BEGIN", send: cat(replyBegin(6, "a"), replyBegin(6, "a")), closed: "BEGIN inside"},
	{name: "replying ERROR", send: cat(replyBegin(6, "a"), errorFrame(FlagBack, 5)), closed: "ERROR in slot 1 inside a REPLY"},
	{name: "replying ABORT then ERROR", send: cat(replyBegin(6, "a"), abortBack(1), errorFrame(FlagBack, 13)), code: Internal},
	{name: "replying ABORT then REPLY", send: cat(replyBegin(6, "a"), abortBack(1), reply(1, "new")), reply: "new"},
	{name: "replying ABORT then REPLY in pieces", send: cat(replyBegin(6, "abc"), abortBack(1), replyBegin(3, "n"), replyPart(0, "ew")), reply: "new"},
	{name: "replying ABORT twice", send: cat(replyBegin(6, "a"), abortBack(1), abortBack(1)), closed: "ABORT in slot 1"},
	{name: "replying continuation after ABORT", send: cat(replyBegin(6, "a"), abortBack(1), replyPart(FlagMore, "b")), closed: "not begun"},
	{name: "REPLY twice", send: cat(reply(1, "one"), reply(1, "two")), closed: "REPLY in slot 1"},
	{name: "ERROR then REPLY", send: cat(errorFrame(FlagBack, 5), reply(1, "two")), closed: "REPLY in slot 1"},
	{name: "REPLY then ERROR", send: cat(reply(1, "one"), errorFrame(FlagBack, 5)), closed: "ERROR in slot 1"},

	{name: "total 0", send: replyBegin(0, ""), closed: "message of 0 bytes"},
	{name: "total over MaxMessage", send: replyBegin(8193, ""), closed: "MaxMessage is 8192"},
	{name: "total 2^32-1", send: replyBegin(math.MaxUint32, ""), closed: "message of 4294967295 bytes"},
	{name: "BEGIN without MORE", send: frame(FrameReply, FlagBack|FlagBegin, 0, 1, uint32(8), "abc"), closed: "without MORE"},
	{name: "BEGIN holds it all", send: replyBegin(3, "abc"), closed: "whole message"},
	{name: "sum passes the total", send: cat(replyBegin(3, "ab"), replyPart(0, "cd")), closed: "fragments of REPLY"},
	{name: "sum reaches the total with MORE", send: cat(replyBegin(3, "ab"), replyPart(FlagMore, "c")), closed: "fragments of REPLY"},
	{name: "sum below the total", send: cat(replyBegin(4, "ab"), replyPart(0, "c")), closed: "fragments of REPLY"},
	{name: "empty continuation", send: cat(replyBegin(4, "ab"), replyPart(FlagMore, "")), closed: "empty"},
	{name: "empty final continuation", send: cat(replyBegin(4, "ab"), replyPart(0, "")), closed: "empty"},
}

func TestOpenersView(t *testing.T) {
	t.Parallel()
	for _, row := range openerEndings {
		t.Run(strings.ReplaceAll(row.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			eachWay(t, row.run)
		})
	}
}

type outcome struct {
	reply []byte
	err   error
}

// calls has the other end make a call.
func (a *adversary) calls(ctx context.Context, req []byte) <-chan outcome {
	done := make(chan outcome, 1)
	go func() {
		b, err := a.c.Call(ctx, "theirs", req)
		done <- outcome{b, err}
	}()
	return done
}

func (a *adversary) await(done <-chan outcome) outcome {
	a.t.Helper()
	select {
	case o := <-done:
		return o
	case <-time.After(adversaryPatience):
		a.t.Fatalf("the call hangs (the connection: %v)", a.c.Err())
		panic("unreachable")
	}
}

// largeRequest takes a thousand frames, more than the buffers of any transport hold.
// Children do without it: 4 MiB would be a collection at the start of each.
var largeRequest = sync.OnceValue(func() []byte { return make([]byte, 4<<20) })

func (e *ending) run(t *testing.T, w way) {
	a := meet(t, w, nil, nil)
	if e.noCall {
		a.send(e.send)
		a.closed(e.closed)
		return
	}
	req := []byte("ask")
	if e.large {
		req = largeRequest()
	}
	done := a.calls(context.Background(), req)
	if h, _ := a.next(FrameCall); h.ID != 1 || e.large != (h.Flags&FlagBegin != 0) {
		t.Fatalf("CALL %+v", h)
	}
	a.send(e.send)
	if e.closed != "" {
		a.closed(e.closed)
		if o := a.await(done); o.err == nil && e.code == OK && !strings.Contains(e.name, "ended") && !strings.HasPrefix(e.name, "REPLY") {
			t.Errorf("the call ended with %q", o.reply)
		}
		return
	}
	if e.large {
		a.readRest()
	}
	o := a.await(done)
	if string(o.reply) != e.reply || CodeOf(o.err) != e.code || (o.err == nil) != (e.code == OK) || NotRun(o.err) != e.notRun {
		t.Errorf("the call ended with %q, %v (not run: %v)", o.reply, o.err, NotRun(o.err))
	}
	again := a.calls(context.Background(), nil)
	h, _ := a.next(FrameCall)
	a.send(reply(h.ID, "again"))
	if o := a.await(again); string(o.reply) != "again" || o.err != nil || h.ID > 2 { // 2: the slot is freed a moment after its ending
		t.Errorf("the next call, in slot %d, ended with %q, %v", h.ID, o.reply, o.err)
	}
	a.alive()
}

// readRest reads the rest of a request that was begun: its other fragments, or some and ABORT.
func (a *adversary) readRest() {
	a.t.Helper()
	for {
		h, _ := a.next(FrameCall, FrameAbort)
		switch {
		case h.ID != 1:
			a.t.Fatalf("%+v", h)
		case h.Type == FrameAbort, h.Flags&FlagMore == 0:
			return
		}
	}
}

// A caller that has gone leaves its slot to the protocol: CANCEL is sent once,
// the ending is taken in whatever it is, and only then is the slot used again.
func TestAbandonedCallKeepsItsSlot(t *testing.T) {
	for _, row := range []struct {
		name string
		send []byte
	}{
		{"REPLY", reply(1, "late")},
		{"REPLY in pieces", cat(replyBegin(4, "la"), replyPart(0, "te"))},
		{"ERROR", errorFrame(nr, 1)},
		{"aborted REPLY", cat(replyBegin(5, "la"), abortBack(1), errorFrame(FlagBack, 1))},
	} {
		t.Run(strings.ReplaceAll(row.name, " ", "-"), func(t *testing.T) {
			eachWay(t, func(t *testing.T, w way) {
				a := meet(t, w, nil, nil)
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				done := a.calls(ctx, []byte("x"))
				a.next(FrameCall)
				cancel()
				if o := a.await(done); !errors.Is(o.err, context.Canceled) || NotRun(o.err) {
					t.Errorf("the call ended with %v", o.err)
				}
				if h, b := a.next(FrameCancel); h.ID != 1 || len(b) > 0 {
					t.Errorf("CANCEL %+v", h)
				}
				second := a.calls(context.Background(), nil)
				h, _ := a.next(FrameCall)
				if h.ID == 1 {
					t.Fatal("the slot was used again before the ending")
				}
				a.send(cat(row.send, reply(h.ID, "second")))
				if o := a.await(second); string(o.reply) != "second" || o.err != nil {
					t.Errorf("the second call ended with %q, %v", o.reply, o.err)
				}
				a.alive()
				a.send(row.send) // and again
				a.closed("in slot 1")
			})
		})
	}
}

// When the connection is closed for a violation, calls that were sent may have
// run, and those that still wait to be sent have not.
func TestViolationEndsEveryCall(t *testing.T) {
	eachWay(t, func(t *testing.T, w way) {
		announce := adversaryHello()
		announce.limits.calls = 2
		a := meet(t, w, nil, announce)
		var done []<-chan outcome
		for range 5 {
			done = append(done, a.calls(context.Background(), []byte("x")))
		}
		a.next(FrameCall)
		a.next(FrameCall)
		a.send(frame(0x7f, 0, 0, 0))
		a.closed("unknown frame")
		var notRun []bool
		for _, d := range done {
			o := a.await(d)
			if o.err == nil || CodeOf(o.err) != Internal && CodeOf(o.err) != Unavailable {
				t.Errorf("ended with %v", o.err)
			}
			notRun = append(notRun, NotRun(o.err))
		}
		if n := len(slices.DeleteFunc(notRun, func(b bool) bool { return !b })); n != 3 {
			t.Errorf("%d calls are said not to have run, want 3", n)
		}
	})
}
