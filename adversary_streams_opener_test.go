package plugwire

import (
	"context"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

// A streamEnding is a row of the opener's table: what the adversary answers to
// the stream that was opened in slot 1, and what its user is told.
type streamEnding struct {
	name   string
	before func(*testing.T, *Stream) // on this side, before it
	send   []byte                    // frames with BACK
	recv   []string
	code   Code // of the error behind the messages; OK: io.EOF
	notRun bool
	open   bool // LAST was not sent: nothing is to be received, the slot is in use
	closed string
	hello  *hello
	more   func(*testing.T, *adversary, *Stream)
}

func dataBack(payload string) []byte { return frame(FrameData, FlagBack, 0, 1, payload) }
func dataBackBegin(total uint32, payload string) []byte {
	return frame(FrameData, FlagBack|bm, 0, 1, total, payload)
}
func dataBackPart(flags FrameFlags, payload string) []byte {
	return frame(FrameData, FlagBack|flags, 0, 1, payload)
}
func closeBack(flags FrameFlags, code uint16) []byte {
	return frame(FrameClose, FlagBack|flags, code, 1)
}
func resetBack(flags FrameFlags, code uint16) []byte {
	return frame(FrameReset, FlagBack|flags, code, 1)
}
func creditBack(cost uint32) []byte { return frame(FrameCredit, FlagBack, 0, 1, cost) }

var (
	lastWell   = closeBack(FlagLast, 0)
	headerBack = frame(FrameOpen, FlagBack, 0, 1)

	userCloses = func(t *testing.T, s *Stream) {
		if err := s.CloseSend(); err != nil {
			t.Error(err)
		}
	}
	userResets = func(_ *testing.T, s *Stream) { s.Reset(Aborted) }
	userSends  = func(t *testing.T, s *Stream) { // 100 bytes of cost
		if err := s.Send([]byte(filler[:36])); err != nil {
			t.Error(err)
		}
	}
)

var streamOpenerEndings = []streamEnding{
	// State: open.
	{name: "open DATA", send: cat(dataBack("a"), dataBack(""), lastWell), recv: []string{"a", ""}},
	{name: "open DATA in pieces", send: cat(dataBackBegin(6, "a"), dataBackPart(FlagMore, "bcd"), dataBackPart(0, "ef"), lastWell), recv: []string{"abcdef"}},
	{name: "open CLOSE", send: cat(dataBack("a"), closeBack(0, 0), lastWell), recv: []string{"a"}},
	{name: "open CLOSE then failed", send: cat(dataBack("a"), closeBack(0, 0), closeBack(FlagLast, 300)), recv: []string{"a"}},
	{name: "open RESET", send: cat(resetBack(0, 10), lastWell), code: Aborted},
	{name: "open RESET with status 0", send: cat(resetBack(0, 0), lastWell), code: Canceled},
	{name: "open RESET inside a message", send: cat(dataBackBegin(6, "a"), resetBack(0, 10), lastWell), code: Aborted},
	{name: "open CLOSE with LAST", send: lastWell},
	{name: "open CLOSE with LAST that failed", send: cat(dataBack("a"), closeBack(FlagLast, 300)), recv: []string{"a"}, code: 300},
	{name: "open RESET with LAST", send: resetBack(FlagLast, 300), code: 300},
	{name: "open RESET with LAST inside a message", send: cat(dataBackBegin(6, "a"), resetBack(FlagLast, 300)), code: 300},
	{name: "open RESET with LAST and NOTRUN", send: resetBack(FlagLast|FlagNotRun, 12), code: Unimplemented, notRun: true},
	{name: "open RESET with LAST and status 0", send: resetBack(FlagLast, 0), code: Canceled},
	{name: "open CREDIT for nothing", send: creditBack(1), closed: "CREDIT of 1"},
	{name: "open CREDIT", before: userSends, send: cat(creditBack(99), creditBack(1), lastWell)},
	{name: "open CREDIT of too much", before: userSends, send: creditBack(101), closed: "CREDIT of 101 for slot 1, where 100 is outstanding"},
	{name: "open CREDIT of too much later", before: userSends, send: cat(creditBack(99), creditBack(2)), closed: "CREDIT of 2"},
	{name: "open CREDIT of 0", before: userSends, send: creditBack(0), closed: "CREDIT of 0"},
	{name: "open CREDIT of 5 bytes", before: userSends, send: frame(FrameCredit, FlagBack, 0, 1, uint32(1), "x"), closed: "CREDIT of 5 bytes"},
	{name: "open CREDIT without BACK", before: userSends, send: streamCredit(1, 1), closed: "CREDIT in slot 1"},
	{name: "open ABORT", send: cat(dataBackBegin(6, "a"), abortBack(1), dataBack("b"), lastWell), recv: []string{"b"}},
	{name: "open ABORT of nothing", send: abortBack(1), closed: "ABORT in slot 1"},
	{name: "open ABORT twice", send: cat(dataBackBegin(6, "a"), abortBack(1), abortBack(1)), closed: "ABORT in slot 1"},
	{name: "open CLOSE inside a message", send: cat(dataBackBegin(6, "a"), closeBack(0, 0)), closed: "CLOSE in slot 1 inside a message"},
	{name: "open CLOSE with LAST inside a message", send: cat(dataBackBegin(6, "a"), lastWell), closed: "CLOSE in slot 1 inside a message"},
	{name: "open NOTRUN without LAST", send: resetBack(FlagNotRun, 1), closed: "NOTRUN"},
	{name: "open LAST without BACK", send: frame(FrameClose, FlagLast, 0, 1), closed: "CLOSE"},
	{name: "open REPLY", send: reply(1, "x"), closed: "REPLY in slot 1, which is a stream"},
	{name: "open ERROR", send: errorFrame(FlagBack, 5), closed: "ERROR in slot 1, which is a stream"},
	{name: "open CLOSE cut short", send: frame(FrameClose, bl, 1, 1, "x"), closed: "shorter"},
	{name: "another slot DATA", send: frame(FrameData, FlagBack, 0, 2, "x"), closed: "DATA in slot 2"},
	{name: "id 0 DATA", send: frame(FrameData, FlagBack, 0, 0, "x"), closed: "DATA in slot 0"},
	{name: "id beyond the limit CLOSE", send: frame(FrameClose, bl, 0, 9), closed: "CLOSE in slot 9"},
	{name: "id 2^32-1 RESET", send: frame(FrameReset, bl, 0, math.MaxUint32), closed: "slot 4294967295"},
	{name: "id 2^32-1 CREDIT", send: frame(FrameCredit, FlagBack, 0, math.MaxUint32, uint32(1)), closed: "slot 4294967295"},

	// State: after CLOSE from the acceptor.
	{name: "closed DATA", send: cat(closeBack(0, 0), dataBack("x")), closed: "DATA in slot 1 after CLOSE"},
	{name: "closed CLOSE", send: cat(closeBack(0, 0), closeBack(0, 0)), closed: "CLOSE in slot 1 after CLOSE"},
	{name: "closed RESET", send: cat(closeBack(0, 0), resetBack(0, 10), lastWell)},
	{name: "closed RESET ends output", send: cat(closeBack(0, 0), resetBack(0, 10)), open: true, more: func(t *testing.T, a *adversary, s *Stream) {
		eventually(t, func() bool { return CodeOf(s.Send(nil)) == Aborted })
	}},
	{name: "closed RESET with LAST", send: cat(closeBack(0, 0), resetBack(FlagLast, 10))},
	{name: "closed CREDIT", before: userSends, send: cat(closeBack(0, 0), creditBack(100), lastWell)},
	{name: "closed ABORT", send: cat(closeBack(0, 0), abortBack(1)), closed: "ABORT in slot 1"},
	{name: "closed OPEN", send: cat(closeBack(0, 0), headerBack), closed: "OPEN with BACK"},

	// State: after RESET from the acceptor.
	{name: "reset DATA", send: cat(resetBack(0, 10), dataBack("x")), closed: "DATA in slot 1 after"},
	{name: "reset CLOSE", send: cat(resetBack(0, 10), closeBack(0, 0)), closed: "CLOSE in slot 1 after RESET"},
	{name: "reset RESET", send: cat(resetBack(0, 10), resetBack(0, 10)), closed: "RESET in slot 1 after RESET"},
	{name: "reset CREDIT", before: userSends, send: cat(resetBack(0, 10), creditBack(100), lastWell), code: Aborted},
	{name: "reset ABORT", send: cat(dataBackBegin(9, "x"), resetBack(0, 10), abortBack(1)), closed: "ABORT in slot 1"},
	{name: "reset OPEN", send: cat(resetBack(0, 10), headerBack), closed: "OPEN with BACK"},
	{name: "reset RESET with LAST", send: cat(resetBack(0, 10), resetBack(FlagLast, 9)), code: Aborted},

	// State: free.
	{name: "ended DATA", send: cat(lastWell, dataBack("x")), closed: "DATA in slot 1"},
	{name: "ended CLOSE", send: cat(lastWell, closeBack(0, 0)), closed: "CLOSE in slot 1"},
	{name: "ended LAST", send: cat(lastWell, lastWell), closed: "CLOSE in slot 1"},
	{name: "ended RESET", send: cat(lastWell, resetBack(FlagLast, 1)), closed: "RESET in slot 1"},
	{name: "ended CREDIT", before: userSends, send: cat(lastWell, creditBack(1)), closed: "CREDIT in slot 1"},
	{name: "ended ABORT", send: cat(lastWell, abortBack(1)), closed: "ABORT in slot 1"},
	{name: "ended OPEN", send: cat(lastWell, headerBack), closed: "OPEN in slot 1"},

	// The header.
	{name: "header", send: cat(headerBack, dataBack("a"), lastWell), recv: []string{"a"}},
	{name: "header twice", send: cat(headerBack, headerBack), closed: "OPEN with BACK after"},
	{name: "header after DATA", send: cat(dataBack("a"), headerBack), closed: "OPEN with BACK after"},
	{name: "header after CREDIT", before: userSends, send: cat(creditBack(1), headerBack, lastWell)},
	{name: "header with a deadline", send: frame(FrameOpen, FlagBack|FlagDeadline, 0, 1, uint64(9)), closed: "OPEN with BACK"},
	{name: "header with a payload", send: frame(FrameOpen, FlagBack, 0, 1, "x"), closed: "OPEN with BACK"},
	{name: "header with a name", send: frame(FrameOpen, FlagBack, 0, 1, uint8(4), "echo"), closed: "OPEN with BACK"},
	{name: "header with META", send: frame(FrameOpen, FlagBack|FlagMeta, 0, 1, uint16(0)), closed: "metadata"},
	{name: "trailer with META", send: frame(FrameClose, bl|FlagMeta, 0, 1, uint16(0)), closed: "metadata"},

	// After this side's CLOSE nothing changes.
	{name: "after own CLOSE DATA", before: userCloses, send: cat(headerBack, dataBack("a"), closeBack(0, 0), lastWell), recv: []string{"a"}},
	{name: "after own CLOSE RESET", before: userCloses, send: cat(resetBack(0, 10), closeBack(FlagLast, 10)), code: Aborted},
	{name: "after own CLOSE ABORT of nothing", before: userCloses, send: abortBack(1), closed: "ABORT in slot 1"},
	{name: "after own CLOSE header after DATA", before: userCloses, send: cat(dataBack("a"), headerBack), closed: "OPEN with BACK after"},

	// Nor after its RESET, but that messages are dropped, and credited.
	{name: "after own RESET LAST", before: userResets, send: closeBack(FlagLast, 1), code: Aborted},
	{name: "after own RESET DATA", before: userResets, send: cat(headerBack, dataBack("a"), dataBackBegin(9, "x"), abortBack(1), closeBack(0, 0), closeBack(FlagLast, 1)), code: Aborted},
	{name: "after own RESET RESET", before: userResets, send: cat(resetBack(0, 9), closeBack(FlagLast, 1)), code: Aborted},
	{name: "after own RESET DATA is credited", before: userResets, send: dataBack(filler[:1024-64]), open: true, code: Aborted, more: func(t *testing.T, a *adversary, s *Stream) {
		if h, b := a.next(FrameCredit); describe(h, b) != "CREDIT 0 0 #1 1024" {
			t.Error(describe(h, b))
		}
	}},
	{name: "after own RESET too much DATA", before: userResets, send: dataBackBegin(8193, "x"), closed: "MaxMessage"},
	{name: "after own RESET DATA after CLOSE", before: userResets, send: cat(closeBack(0, 0), dataBack("x")), closed: "after CLOSE"},
	{name: "after own RESET header twice", before: userResets, send: cat(headerBack, headerBack), closed: "OPEN with BACK after"},
	{name: "after own RESET header after DATA", before: userResets, send: cat(dataBack("a"), headerBack), closed: "OPEN with BACK after"},
	{name: "after own RESET ABORT of nothing", before: userResets, send: abortBack(1), closed: "ABORT in slot 1"},

	// What is wrong with a message, and the window.
	{name: "empty continuation", send: cat(dataBackBegin(6, "a"), dataBackPart(FlagMore, "")), closed: "empty"},
	{name: "sum passes the total", send: cat(dataBackBegin(3, "a"), dataBackPart(0, "bcd")), closed: "add up"},
	{name: "sum below the total", send: cat(dataBackBegin(3, "a"), dataBackPart(0, "b")), closed: "add up"},
	{name: "continuation of nothing", send: dataBackPart(FlagMore, "b"), closed: "not begun"},
	{name: "window exactly", send: dataBack(filler[:4032]), open: true},
	{name: "window overrun", send: cat(dataBack(filler[:4032]), dataBack("")), closed: "StreamWindow is 4096"},
	{name: "window: a larger message below a quarter", send: cat(dataBack(filler[:1023-64]), dataBackBegin(8192, "x")), open: true},
	{name: "window: a larger message at a quarter", send: cat(dataBack(filler[:1024-64]), dataBackBegin(8192, "x")), closed: "StreamWindow is 4096"},

	{name: "metadata", send: cat(frame(FrameOpen, FlagBack|FlagMeta, 0, 1, metaField("h", "1")), frame(FrameClose, bl|FlagMeta, 0, 1, metaField("t", "2"))), hello: withMetadata(streamHello()), more: func(t *testing.T, _ *adversary, s *Stream) {
		if h, err := s.Header(); h["h"] != "1" || err != nil || s.Trailer()["t"] != "2" {
			t.Errorf("header %v, %v, trailer %v", h, err, s.Trailer())
		}
	}},
	{name: "metadata and text in RESET", send: frame(FrameReset, bl|FlagMeta, 300, 1, metaField("t", "2"), appendErrorPayload(nil, "why", []byte("detail"))), code: 300, hello: withMetadata(streamHello()), more: func(t *testing.T, _ *adversary, s *Stream) {
		_, err := s.Recv()
		var e *Error
		if !errors.As(err, &e) || e.Message != "why" || string(e.Detail) != "detail" || s.Trailer()["t"] != "2" {
			t.Errorf("%#v, trailer %v", err, s.Trailer())
		}
	}},
}

func (e *streamEnding) run(t *testing.T, w way) {
	a := meetStreams(t, w, nil, e.hello)
	s, err := a.c.OpenStream(context.Background(), "theirs")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SendHeader(); err != nil {
		t.Fatal(err)
	}
	if h, b := a.next(FrameOpen); h.ID != 1 || string(b) != "\x06theirs" {
		t.Fatalf("OPEN %+v %q", h, b)
	}
	if e.before != nil {
		read := make(chan struct{}) // pipes take nothing that is not read
		go func() { a.next(FrameData, FrameClose, FrameReset); close(read) }()
		e.before(t, s)
		<-read
	}
	a.send(e.send)
	if e.closed != "" {
		a.closed(e.closed)
		for err = nil; err == nil; {
			_, err = s.Recv()
		}
		if s.Send(nil) == nil {
			t.Error("Send works when the connection has ended")
		}
		a.nothingLeft()
		return
	}
	if !e.open {
		for i := 0; ; i++ {
			b, err := s.Recv()
			if err == nil {
				if i >= len(e.recv) || e.recv[i] != string(b) {
					t.Errorf("message %d is %.20q, want of %q", i, b, e.recv)
				}
				continue
			}
			if i != len(e.recv) {
				t.Errorf("%d messages, want %q", i, e.recv)
			}
			if e.code == OK && err != io.EOF || e.code != OK && (CodeOf(err) != e.code || NotRun(err) != e.notRun) {
				t.Errorf("ended with %v (not run: %v)", err, NotRun(err))
			}
			break
		}
		eventually(t, func() bool { a.c.out.Lock(); defer a.c.out.Unlock(); return len(a.c.free) == 1 })
		if err := s.Send(nil); err == nil {
			t.Error("Send works after the end")
		}
	}
	if e.more != nil {
		e.more(t, a, s)
	}
	next, err := a.c.OpenStream(context.Background(), "theirs")
	if err != nil {
		t.Fatal(err)
	}
	if err := next.SendHeader(); err != nil {
		t.Fatal(err)
	}
	h, _ := a.next(FrameOpen)
	if want := map[bool]uint32{false: 1, true: 2}[e.open]; h.ID != want {
		t.Errorf("the next stream is in slot %d, want %d", h.ID, want)
	}
	a.send(frame(FrameClose, bl, 0, h.ID))
	if _, err := next.Recv(); err != io.EOF {
		t.Errorf("the next stream: %v", err)
	}
	a.alive()
	a.nothingLeft()
}

func TestStreamOpenersView(t *testing.T) {
	for _, row := range streamOpenerEndings {
		t.Run(strings.ReplaceAll(row.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			eachWay(t, row.run)
		})
	}
}

// Frames for a stream of this side's that has not been opened towards the other.
func TestStreamThatIsNotOpenedYet(t *testing.T) {
	for name, f := range map[string][]byte{
		"DATA": dataBack("x"), "CLOSE": closeBack(0, 0), "LAST": lastWell, "RESET": resetBack(0, 1), "refusal": resetBack(FlagLast|FlagNotRun, 12),
		"CREDIT": creditBack(1), "OPEN": headerBack, "ABORT": abortBack(1), "REPLY": reply(1, "x"),
	} {
		t.Run(name, func(t *testing.T) {
			eachWay(t, func(t *testing.T, w way) {
				a := meetStreams(t, w, nil, nil)
				s, err := a.c.OpenStream(context.Background(), "theirs")
				if err != nil {
					t.Fatal(err)
				}
				a.send(f)
				a.closed("slot 1")
				if err := s.Send(nil); CodeOf(err) == OK || err == io.EOF || !NotRun(err) {
					t.Errorf("Send: %v (not run: %v)", err, NotRun(err))
				}
				a.nothingLeft()
			})
		})
	}
}
