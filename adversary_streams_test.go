package plugwire

import (
	"context"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"time"
)

// Streams, section 9 of docs/PROTOCOL.md, frame by frame and in both roles.

// Streams of the other end, by number, behind the methods that it always has.
const (
	sEcho  = mUnannounced + iota // returns each message
	sHold                        // receives nothing, and returns when the adversary says so
	sWait                        // returns when its context ends
	sCount                       // receives to the end, and says how many messages and bytes came
	sHalf                        // CloseSend, then as sHold
	sReset                       // Reset, then as sHold
	sBad                         // fails with an error that has no code
	sRecv                        // receives until there is an error, and returns it
)

func (a *adversary) streamMux() *Mux {
	m := a.mux()
	handle := func(name string, f func(s *Stream) error) {
		m.HandleStream(name, func(s *Stream) error {
			a.note(a.ran, name)
			return f(s)
		})
	}
	hold := func(*Stream) error { <-a.release; return nil }
	handle("echo stream", func(s *Stream) error {
		for {
			b, err := s.Recv()
			if err == io.EOF {
				return nil
			} else if err == nil {
				err = s.Send(b)
			}
			if err != nil {
				return err
			}
		}
	})
	handle("hold", hold)
	handle("wait stream", func(s *Stream) error { <-s.Context().Done(); return s.Context().Err() })
	handle("count", func(s *Stream) error {
		for n, size := 0, 0; ; n++ {
			b, err := s.Recv()
			if err == io.EOF {
				return s.Send(fmt.Appendf(nil, "%d messages, %d", n, size))
			} else if err != nil {
				return err
			}
			size += len(b)
		}
	})
	handle("half", func(s *Stream) error { s.CloseSend(); return hold(s) })
	handle("reset", func(s *Stream) error { s.Reset(Aborted); return hold(s) })
	handle("bad", func(s *Stream) error { return &Error{Message: "no code"} })
	handle("recv", func(s *Stream) error {
		for {
			if _, err := s.Recv(); err != nil {
				return err
			}
		}
	})
	return m
}

const streamWindow = 4096

// streamLimits are adversaryLimits with a small window for streams.
func streamLimits(change func(*Limits)) *Config {
	return limited(func(l *Limits) {
		l.StreamWindow = streamWindow
		if change != nil {
			change(l)
		}
	})
}

// streamHello announces what streams need.
func streamHello() *hello {
	h := adversaryHello()
	h.offered = []string{featureStreams}
	h.limits.streamWindow = streamWindow
	return h
}

func meetStreams(t testing.TB, w way, cfg *Config, announce *hello) *adversary {
	t.Helper()
	if cfg == nil {
		cfg = streamLimits(nil)
	}
	if announce == nil {
		announce = streamHello()
	}
	return meetServing(t, w, cfg, announce, (*adversary).streamMux)
}

// withMetadata announces that the adversary takes metadata too.
func withMetadata(h *hello) *hello { h.offered = append(h.offered, featureMetadata); return h }

// nothingLeft ends the connection and shows that nothing of it stays.
func (a *adversary) nothingLeft() {
	a.t.Helper()
	a.letGo()
	a.nc.Close()
	a.ended("")
	accounts(a.t, a.c)
}

const bl = FlagBack | FlagLast

func openFrame(method uint16, id uint32) []byte { return frame(FrameOpen, 0, method, id) }
func data(id uint32, payload string) []byte     { return frame(FrameData, 0, 0, id, payload) }
func dataBegin(id, total uint32, payload string) []byte {
	return frame(FrameData, bm, 0, id, total, payload)
}
func dataPart(flags FrameFlags, id uint32, payload string) []byte {
	return frame(FrameData, flags, 0, id, payload)
}
func closeFrame(id uint32) []byte { return frame(FrameClose, 0, 0, id) }
func resetFrame(id uint32) []byte { return frame(FrameReset, 0, 1, id) }
func streamCredit(id, cost uint32) []byte {
	return frame(FrameCredit, 0, 0, id, cost)
}
func metaField(pairs ...string) []byte {
	md := Metadata{}
	for i := 0; i < len(pairs); i += 2 {
		md[pairs[i]] = pairs[i+1]
	}
	n, _ := md.size()
	return md.append(nil, n)
}

// A streamScript is a row of the acceptor's table: what the adversary sends at
// once, then, if that is not nil, what it sends when slot 1 has had its LAST.
type streamScript struct {
	name   string
	send   []byte
	then   []byte
	want   []string // but for what came with the first LAST
	closed string
	cfg    *Config
	hello  *hello
	call   bool // a call stays incomplete, which the end of the connection leaves so
}

func (s *streamScript) run(t *testing.T, w way) {
	a := meetStreams(t, w, s.cfg, s.hello)
	a.send(s.send)
	if s.then != nil {
		for h := (FrameHeader{}); h.Flags&FlagLast == 0; {
			h, _ = a.next(FrameClose, FrameReset)
		}
		a.send(s.then)
	}
	if s.closed != "" {
		a.closed(s.closed)
	} else {
		a.alive(s.want...)
	}
	if !s.call {
		a.nothingLeft()
	}
}

const (
	canceled1 = "CLOSE BACK|LAST 1 #1"
	well1     = "CLOSE BACK|LAST 0 #1"
	refused1  = "RESET BACK|LAST|NOTRUN 12 #1"
)

// ended1 is a stream in slot 1 that ends at once.
var ended1 = cat(openFrame(sCount, 1), closeFrame(1))

var streamAcceptorScripts = []streamScript{
	// State: free, never a stream.
	{name: "free OPEN", send: openFrame(sHold, 1)},
	{name: "free DATA", send: data(1, "x"), closed: "DATA in slot 1"},
	{name: "free DATA with BEGIN", send: dataBegin(1, 9, "x"), closed: "DATA in slot 1"},
	{name: "free CLOSE", send: closeFrame(1), closed: "CLOSE in slot 1"},
	{name: "free RESET", send: resetFrame(1), closed: "RESET in slot 1"},
	{name: "free CREDIT", send: streamCredit(1, 1), closed: "CREDIT in slot 1"},
	{name: "free ABORT", send: abortFrame(1), closed: "ABORT in slot 1"},
	{name: "free LAST without BACK", send: frame(FrameClose, FlagLast, 0, 1), closed: "CLOSE"},
	{name: "after a call DATA", send: cat(callFrame(1, "abcdefgh"), data(1, "x")), closed: "DATA in slot 1"},
	{name: "a call's slot DATA", send: cat(slowCall(1), data(1, "x")), closed: "DATA in slot 1"},
	{name: "a call's slot CLOSE", send: cat(slowCall(1), closeFrame(1)), closed: "CLOSE in slot 1"},
	{name: "a call's slot RESET", send: cat(slowCall(1), resetFrame(1)), closed: "RESET in slot 1"},
	{name: "a call's slot OPEN", send: cat(slowCall(1), openFrame(sEcho, 1)), closed: "OPEN in slot 1, which is in use"},
	{name: "a call's slot CREDIT", send: cat(slowCall(1), streamCredit(1, 1)), closed: "CREDIT in slot 1"},
	{name: "an incomplete call's slot OPEN", send: cat(callBegin(1, 8, "abc"), openFrame(sEcho, 1)), closed: "in use", call: true},

	// State: open.
	{name: "open OPEN", send: cat(openFrame(sHold, 1), openFrame(sHold, 1)), closed: "OPEN in slot 1, which is in use"},
	{name: "open DATA", send: cat(openFrame(sEcho, 1), data(1, "abc"), data(1, ""), closeFrame(1)), want: []string{`DATA BACK 0 #1 "abc"`, `DATA BACK 0 #1 ""`, well1}},
	{name: "open DATA in pieces", send: cat(openFrame(sEcho, 1), dataBegin(1, 6, "a"), dataPart(FlagMore, 1, "bcd"), dataPart(0, 1, "ef"), closeFrame(1)), want: []string{`DATA BACK 0 #1 "abcdef"`, well1}},
	{name: "open DATA with BEGIN alone first", send: cat(openFrame(sEcho, 1), dataBegin(1, 2, ""), dataPart(0, 1, "ab"), closeFrame(1)), want: []string{`DATA BACK 0 #1 "ab"`, well1}},
	{name: "open DATA with any code", send: cat(openFrame(sEcho, 1), frame(FrameData, 0, 9, 1, "x"), closeFrame(1)), want: []string{`DATA BACK 0 #1 "x"`, well1}},
	{name: "open CLOSE", send: cat(openFrame(sCount, 1), data(1, "ab"), data(1, "c"), closeFrame(1)), want: []string{`DATA BACK 0 #1 "2 messages, 3"`, well1}},
	{name: "open CLOSE with text", send: cat(openFrame(sCount, 1), frame(FrameClose, 0, 0, 1, appendErrorPayload(nil, "done", []byte("x")))), want: []string{`DATA BACK 0 #1 "0 messages, 0"`, well1}},
	{name: "open CLOSE cut short", send: cat(openFrame(sCount, 1), frame(FrameClose, 0, 0, 1, uint16(9), "x")), closed: "shorter"},
	{name: "open RESET", send: cat(openFrame(sWait, 1), resetFrame(1)), want: []string{canceled1}},
	{name: "open RESET while it receives", send: cat(openFrame(sRecv, 1), data(1, "x"), frame(FrameReset, 0, 10, 1)), want: []string{"CLOSE BACK|LAST 10 #1"}},
	{name: "open RESET with status 0", send: cat(openFrame(sRecv, 1), frame(FrameReset, 0, 0, 1)), want: []string{canceled1}},
	{name: "open RESET inside a message", send: cat(openFrame(sRecv, 1), dataBegin(1, 9, "x"), resetFrame(1)), want: []string{canceled1}},
	{name: "open RESET frees nothing", send: cat(openFrame(sHold, 1), resetFrame(1), openFrame(sHold, 1)), closed: "in use"},
	{name: "open RESET frees nothing for a call", send: cat(openFrame(sHold, 1), resetFrame(1), callFrame(1, "x")), closed: "in use"},
	{name: "open CREDIT for nothing", send: cat(openFrame(sHold, 1), streamCredit(1, 1)), closed: "CREDIT of 1 for slot 1, where 0 is outstanding"},
	{name: "open CREDIT of 0", send: cat(openFrame(sHold, 1), streamCredit(1, 0)), closed: "CREDIT of 0"},
	{name: "open CREDIT of 2^32-1", send: cat(openFrame(sHold, 1), streamCredit(1, math.MaxUint32)), closed: "CREDIT of 4294967295"},
	{name: "open CREDIT of no bytes", send: cat(openFrame(sHold, 1), frame(FrameCredit, 0, 0, 1)), closed: "CREDIT of 0 bytes"},
	{name: "open CREDIT of 3 bytes", send: cat(openFrame(sHold, 1), frame(FrameCredit, 0, 0, 1, "abc")), closed: "CREDIT of 3 bytes"},
	{name: "open CREDIT of 16 bytes", send: cat(openFrame(sHold, 1), frame(FrameCredit, 0, 0, 1, uint64(1), uint64(1))), closed: "CREDIT of 16 bytes"},
	{name: "open ABORT", send: cat(openFrame(sCount, 1), dataBegin(1, 9, "x"), abortFrame(1), data(1, "ab"), closeFrame(1)), want: []string{`DATA BACK 0 #1 "1 messages, 2"`, well1}},
	{name: "open ABORT of nothing", send: cat(openFrame(sCount, 1), abortFrame(1)), closed: "ABORT in slot 1"},
	{name: "open ABORT of a whole message", send: cat(openFrame(sCount, 1), data(1, "x"), abortFrame(1)), closed: "ABORT in slot 1"},
	{name: "open ABORT twice", send: cat(openFrame(sCount, 1), dataBegin(1, 9, "x"), abortFrame(1), abortFrame(1)), closed: "ABORT in slot 1"},
	{name: "open continuation after ABORT", send: cat(openFrame(sCount, 1), dataBegin(1, 9, "x"), abortFrame(1), dataPart(FlagMore, 1, "x")), closed: "not begun"},
	{name: "open CALL", send: cat(openFrame(sHold, 1), callFrame(1, "x")), closed: "CALL in slot 1, which is in use"},
	{name: "open CALL with BEGIN", send: cat(openFrame(sHold, 1), callBegin(1, 9, "x")), closed: "in use"},
	{name: "open CALL continuation", send: cat(openFrame(sHold, 1), callPart(FlagMore, 1, "x")), closed: "not begun"},
	{name: "open CANCEL", send: cat(openFrame(sHold, 1), cancelFrame(1)), closed: "CANCEL of slot 1, which is a stream"},
	{name: "open REPLY", send: cat(openFrame(sHold, 1), frame(FrameReply, FlagBack, 0, 1)), closed: "REPLY in slot 1"},
	{name: "open REPLY without BACK", send: cat(openFrame(sHold, 1), frame(FrameReply, 0, 0, 1)), closed: "REPLY"},
	{name: "open ERROR", send: cat(openFrame(sHold, 1), frame(FrameError, FlagBack, 1, 1, uint16(0))), closed: "ERROR in slot 1"},
	{name: "open DATA with BACK", send: cat(openFrame(sHold, 1), frame(FrameData, FlagBack, 0, 1)), closed: "DATA in slot 1, where no stream was opened"},
	{name: "open OPEN with BACK", send: cat(openFrame(sHold, 1), frame(FrameOpen, FlagBack, 0, 1)), closed: "OPEN in slot 1"},
	{name: "open CLOSE with LAST and without BACK", send: cat(openFrame(sHold, 1), frame(FrameClose, FlagLast, 0, 1)), closed: "LAST"},
	{name: "open RESET with LAST and without BACK", send: cat(openFrame(sHold, 1), frame(FrameReset, FlagLast, 1, 1)), closed: "LAST"},
	{name: "open RESET with NOTRUN", send: cat(openFrame(sHold, 1), frame(FrameReset, FlagNotRun, 1, 1)), closed: "NOTRUN"},
	{name: "open CLOSE with NOTRUN", send: cat(openFrame(sHold, 1), frame(FrameClose, FlagNotRun, 1, 1)), closed: "CLOSE frame with flag NOTRUN"},
	{name: "open DATA with DEADLINE", send: cat(openFrame(sHold, 1), frame(FrameData, FlagDeadline, 0, 1, uint64(9))), closed: "DATA frame with flag DEADLINE"},
	{name: "open ABORT of another slot", send: cat(openFrame(sHold, 1), dataBegin(1, 9, "x"), abortFrame(2)), closed: "ABORT in slot 2"},
	{name: "open others interleave", send: cat(openFrame(sEcho, 1), openFrame(sEcho, 2), dataBegin(1, 6, "abc"), data(2, "two"), callFrame(3, "call"), dataPart(0, 1, "def"), closeFrame(2), closeFrame(1)),
		want: []string{`DATA BACK 0 #1 "abcdef"`, `DATA BACK 0 #2 "two"`, `REPLY BACK 0 #3 "call"`, well1, "CLOSE BACK|LAST 0 #2"}},

	// State: after CLOSE from the opener.
	{name: "closed OPEN", send: cat(openFrame(sHold, 1), closeFrame(1), openFrame(sHold, 1)), closed: "in use"},
	{name: "closed DATA", send: cat(openFrame(sHold, 1), closeFrame(1), data(1, "x")), closed: "DATA in slot 1 after CLOSE"},
	{name: "closed CLOSE", send: cat(openFrame(sHold, 1), closeFrame(1), closeFrame(1)), closed: "CLOSE in slot 1 after CLOSE"},
	{name: "closed RESET", send: cat(openFrame(sWait, 1), closeFrame(1), resetFrame(1)), want: []string{canceled1}},
	{name: "closed RESET RESET", send: cat(openFrame(sHold, 1), closeFrame(1), resetFrame(1), resetFrame(1)), closed: "RESET in slot 1 after RESET"},
	{name: "closed CREDIT", send: cat(openFrame(sHold, 1), closeFrame(1), streamCredit(1, 1)), closed: "CREDIT of 1"},
	{name: "closed ABORT", send: cat(openFrame(sHold, 1), closeFrame(1), abortFrame(1)), closed: "ABORT in slot 1"},
	{name: "CLOSE inside a message", send: cat(openFrame(sHold, 1), dataBegin(1, 9, "x"), closeFrame(1)), closed: "CLOSE in slot 1 inside a message"},

	// State: after RESET from the opener.
	{name: "reset OPEN", send: cat(openFrame(sHold, 1), resetFrame(1), openFrame(sHold, 1)), closed: "in use"},
	{name: "reset DATA", send: cat(openFrame(sHold, 1), resetFrame(1), data(1, "x")), closed: "DATA in slot 1 after RESET"},
	{name: "reset continuation", send: cat(openFrame(sHold, 1), dataBegin(1, 9, "x"), resetFrame(1), dataPart(FlagMore, 1, "x")), closed: "DATA in slot 1 after RESET"},
	{name: "reset CLOSE", send: cat(openFrame(sHold, 1), resetFrame(1), closeFrame(1)), closed: "CLOSE in slot 1 after RESET"},
	{name: "reset RESET", send: cat(openFrame(sHold, 1), resetFrame(1), resetFrame(1)), closed: "RESET in slot 1 after RESET"},
	{name: "reset CREDIT", send: cat(openFrame(sHold, 1), resetFrame(1), streamCredit(1, 1)), closed: "CREDIT of 1 for slot 1"},
	{name: "reset ABORT", send: cat(openFrame(sHold, 1), dataBegin(1, 9, "x"), resetFrame(1), abortFrame(1)), closed: "ABORT in slot 1 after RESET"},

	// State: ended.
	{name: "ended OPEN", send: ended1, then: cat(openFrame(sEcho, 1), data(1, "x"), closeFrame(1)), want: []string{`DATA BACK 0 #1 "x"`, well1}},
	{name: "ended CALL", send: ended1, then: callFrame(1, "abcdefgh"), want: []string{replyAll}},
	{name: "ended CALL in pieces", send: ended1, then: cat(callBegin(1, 8, "abc"), callPart(0, 1, "defgh")), want: []string{replyAll}},
	{name: "ended CANCEL", send: ended1, then: cancelFrame(1)},
	{name: "ended DATA up to the window", send: openFrame(sBad, 1), then: cat(data(1, filler[:streamWindow-64])), want: nil},
	{name: "ended DATA beyond all", send: openFrame(sBad, 1), then: []byte(strings.Repeat(string(data(1, filler[:4096])), 5)), closed: "DATA in slot 1"},
	{name: "ended DATA in pieces and ABORT", send: openFrame(sBad, 1), then: cat(dataBegin(1, 9, "x"), dataPart(FlagMore, 1, "y"), abortFrame(1))},
	{name: "ended CLOSE", send: openFrame(sBad, 1), then: cat(data(1, "x"), closeFrame(1))},
	{name: "ended RESET", send: openFrame(sBad, 1), then: cat(data(1, "x"), closeFrame(1), resetFrame(1))},
	{name: "ended CREDIT", send: ended1, then: streamCredit(1, 77)},
	{name: "ended crossing then OPEN", send: openFrame(sBad, 1), then: cat(data(1, "x"), closeFrame(1), openFrame(sEcho, 1), data(1, "new"), closeFrame(1)), want: []string{`DATA BACK 0 #1 "new"`, well1}},
	{name: "ended crossing inside a message then OPEN", send: openFrame(sBad, 1), then: cat(dataBegin(1, 9, "x"), abortFrame(1), openFrame(sEcho, 1), data(1, "new"), closeFrame(1)), want: []string{`DATA BACK 0 #1 "new"`, well1}},
	{name: "ended crossing then CALL", send: openFrame(sBad, 1), then: cat(data(1, "x"), resetFrame(1), callFrame(1, "abcdefgh")), want: []string{replyAll}},
	{name: "ended then CALL then DATA", send: ended1, then: cat(callFrame(1, "abcdefgh"), data(1, "x")), closed: "DATA in slot 1"},
	{name: "ended then CALL then CLOSE", send: ended1, then: cat(slowCall(1), closeFrame(1)), closed: "CLOSE in slot 1"},
	{name: "ended then CALL then ABORT", send: ended1, then: cat(slowCall(1), abortFrame(1)), closed: "ABORT in slot 1"},
	{name: "ended LAST without BACK", send: ended1, then: frame(FrameClose, FlagLast, 0, 1), closed: "LAST"},
	{name: "ended NOTRUN without LAST", send: ended1, then: frame(FrameReset, FlagNotRun, 1, 1), closed: "NOTRUN"},
	{name: "ended META", send: ended1, then: frame(FrameClose, FlagMeta, 0, 1, uint16(0)), closed: "metadata"},
	{name: "ended frames with BACK", send: ended1, then: frame(FrameData, FlagBack, 0, 1, "x"), closed: "where no stream was opened"},

	// Refusals.
	{name: "unknown name", send: frame(FrameOpen, 0, 0, 1, uint8(4), "nope"), want: []string{refused1}},
	{name: "unknown name with what follows", send: cat(frame(FrameOpen, 0, 0, 1, uint8(4), "nope"), data(1, "x"), dataBegin(1, 9, "x"), abortFrame(1), closeFrame(1), resetFrame(1)), want: []string{refused1}},
	{name: "no stream", send: openFrame(mEcho, 1), want: []string{refused1}},
	{name: "no stream, reset", send: cat(openFrame(mEcho, 1), resetFrame(1)), want: []string{refused1}},
	{name: "a stream called", send: frame(FrameCall, 0, sEcho, 1, "x"), want: []string{"ERROR BACK|NOTRUN 12 #1"}},
	{name: "known name", send: cat(frame(FrameOpen, 0, 0, 1, uint8(5), "count"), closeFrame(1)), want: []string{`DATA BACK 0 #1 "0 messages, 0"`, well1}},
	{name: "number never announced", send: openFrame(99, 1), closed: "number 99"},
	{name: "empty name", send: frame(FrameOpen, 0, 0, 1, uint8(0)), closed: "without a name"},
	{name: "name cut short", send: frame(FrameOpen, 0, 0, 1, uint8(9), "echo"), closed: "shorter"},
	{name: "OPEN with a payload", send: frame(FrameOpen, 0, sEcho, 1, "x"), closed: "OPEN with a payload"},
	{name: "OPEN by name with a payload", send: frame(FrameOpen, 0, 0, 1, uint8(5), "count", "x"), closed: "OPEN with a payload"},
	{name: "OPEN with BEGIN", send: frame(FrameOpen, bm, sEcho, 1, uint32(9)), closed: "OPEN frame with flag"},
	{name: "OPEN with LAST", send: frame(FrameOpen, bl, 0, 1), closed: "OPEN frame with flag LAST"},
	{name: "OPEN with META", send: frame(FrameOpen, FlagMeta, sEcho, 1, uint16(0)), closed: "metadata"},
	{name: "DATA with META", send: cat(openFrame(sHold, 1), frame(FrameData, FlagMeta, 0, 1, uint16(0))), closed: "metadata"},
	{name: "CLOSE with META", send: cat(openFrame(sHold, 1), frame(FrameClose, FlagMeta, 0, 1, uint16(0))), closed: "metadata"},
	{name: "RESET with META", send: cat(openFrame(sHold, 1), frame(FrameReset, FlagMeta, 1, 1, uint16(0))), closed: "metadata"},
	{name: "handler's error without a code", send: openFrame(sBad, 1), want: []string{"CLOSE BACK|LAST 2 #1"}},

	// Deadlines.
	{name: "deadline", send: frame(FrameOpen, FlagDeadline, sWait, 1, uint64(250e6)), want: []string{"CLOSE BACK|LAST 4 #1"}},
	{name: "deadline while it receives", send: frame(FrameOpen, FlagDeadline, sRecv, 1, uint64(250e6)), want: []string{"CLOSE BACK|LAST 4 #1"}},
	{name: "deadline passed", send: frame(FrameOpen, FlagDeadline, sRecv, 1, uint64(0)), want: []string{"RESET BACK|LAST|NOTRUN 4 #1"}},
	{name: "deadline out of range", send: frame(FrameOpen, FlagDeadline, sWait, 1, uint64(1<<63)), closed: "out of range"},
	{name: "deadline cut short", send: frame(FrameOpen, FlagDeadline, sWait, 1, "1234567"), closed: "shorter"},

	// Ids.
	{name: "id 0 OPEN", send: openFrame(sEcho, 0), closed: "OPEN in slot 0"},
	{name: "id 0 DATA", send: data(0, "x"), closed: "slot 0"},
	{name: "id 0 CLOSE", send: closeFrame(0), closed: "slot 0"},
	{name: "id 0 RESET", send: resetFrame(0), closed: "slot 0"},
	{name: "id beyond the limit OPEN", send: openFrame(sEcho, 9), closed: "OPEN in slot 9, MaxCalls is 8"},
	{name: "id beyond the limit DATA", send: data(9, "x"), closed: "slot 9"},
	{name: "id beyond the limit CLOSE", send: closeFrame(9), closed: "slot 9"},
	{name: "id beyond the limit RESET", send: resetFrame(9), closed: "slot 9"},
	{name: "id beyond the limit CREDIT", send: streamCredit(9, 1), closed: "slot 9"},
	{name: "id 2^32-1 OPEN", send: openFrame(sEcho, math.MaxUint32), closed: "slot 4294967295"},
	{name: "id 2^32-1 DATA", send: data(math.MaxUint32, "x"), closed: "slot 4294967295"},

	// Section 4: what is wrong with a message.
	{name: "total 0", send: cat(openFrame(sHold, 1), dataBegin(1, 0, "")), closed: "message of 0 bytes"},
	{name: "total cut short", send: cat(openFrame(sHold, 1), frame(FrameData, bm, 0, 1, "abc")), closed: "message of 0 bytes"},
	{name: "total over MaxMessage", send: cat(openFrame(sHold, 1), dataBegin(1, 8193, "x")), closed: "MaxMessage is 8192"},
	{name: "total 2^32-1", send: cat(openFrame(sHold, 1), dataBegin(1, math.MaxUint32, "x")), closed: "message of 4294967295 bytes"},
	{name: "whole above MaxMessage", send: cat(openFrame(sHold, 1), data(1, filler[:4097])), closed: "MaxMessage is 4096", cfg: streamLimits(func(l *Limits) { l.MaxFrame, l.MaxMessage, l.StreamWindow = 8192, 4096, 8192 })},
	{name: "whole above MaxMessage, the second", send: cat(openFrame(sHold, 1), data(1, "x"), data(1, filler[:4097])), closed: "MaxMessage is 4096", cfg: streamLimits(func(l *Limits) { l.MaxFrame, l.MaxMessage, l.StreamWindow = 8192, 4096, 8192 })},
	{name: "BEGIN without MORE", send: cat(openFrame(sHold, 1), frame(FrameData, FlagBegin, 0, 1, uint32(9), "x")), closed: "without MORE"},
	{name: "BEGIN holds it all", send: cat(openFrame(sHold, 1), dataBegin(1, 3, "abc")), closed: "whole message"},
	{name: "BEGIN inside", send: cat(openFrame(sHold, 1), dataBegin(1, 3, "a"), dataBegin(1, 3, "a")), closed: "BEGIN inside"},
	{name: "continuation of nothing", send: cat(openFrame(sHold, 1), dataPart(FlagMore, 1, "a")), closed: "not begun"},
	{name: "sum passes the total", send: cat(openFrame(sHold, 1), dataBegin(1, 3, "a"), dataPart(0, 1, "bcd")), closed: "add up"},
	{name: "sum passes the total with MORE", send: cat(openFrame(sHold, 1), dataBegin(1, 3, "a"), dataPart(FlagMore, 1, "bcd")), closed: "add up"},
	{name: "sum reaches the total with MORE", send: cat(openFrame(sHold, 1), dataBegin(1, 3, "a"), dataPart(FlagMore, 1, "bc")), closed: "add up"},
	{name: "sum below the total", send: cat(openFrame(sHold, 1), dataBegin(1, 3, "a"), dataPart(0, 1, "b")), closed: "add up"},
	{name: "empty continuation", send: cat(openFrame(sHold, 1), dataBegin(1, 3, "a"), dataPart(FlagMore, 1, "")), closed: "empty"},
	{name: "empty final continuation", send: cat(openFrame(sHold, 1), dataBegin(1, 3, "a"), dataPart(0, 1, "")), closed: "empty"},

	// The window: 4096, of which a message takes 64 and its bytes.
	{name: "window exactly", send: cat(openFrame(sHold, 1), data(1, filler[:4000-64]), data(1, filler[:96-64]))},
	{name: "window overrun by a byte", send: cat(openFrame(sHold, 1), data(1, filler[:4000-64]), data(1, filler[:97-64])), closed: "StreamWindow is 4096"},
	{name: "window overrun by an empty message", send: cat(openFrame(sHold, 1), data(1, filler[:4096-64]), data(1, "")), closed: "StreamWindow is 4096"},
	{name: "window overrun by a total", send: cat(openFrame(sHold, 1), data(1, filler[:4000-64]), dataBegin(1, 97-64, "x")), closed: "StreamWindow is 4096"},
	{name: "window exactly by a total", send: cat(openFrame(sHold, 1), data(1, filler[:4000-64]), dataBegin(1, 96-64, "x"))},
	{name: "window overrun while a larger message arrives", send: cat(openFrame(sHold, 1), dataBegin(1, 4033, filler[:4032]), dataPart(0, 1, "x"), data(1, "")), closed: "StreamWindow is 4096"},
	{name: "window: a larger message when nothing is outstanding", send: cat(openFrame(sHold, 1), dataBegin(1, 8192, filler[:4092]), dataPart(FlagMore, 1, filler[:4092]), dataPart(0, 1, filler[:8]))},
	{name: "window: a larger message below a quarter", send: cat(openFrame(sHold, 1), data(1, filler[:1023-64]), dataBegin(1, 8192, "x"))},
	{name: "window: a larger message at a quarter", send: cat(openFrame(sHold, 1), data(1, filler[:1024-64]), dataBegin(1, 8192, "x")), closed: "StreamWindow is 4096"},
	{name: "window: an aborted message counts with its total", send: cat(openFrame(sHold, 1), dataBegin(1, 4032, "x"), abortFrame(1), data(1, "")), closed: "StreamWindow is 4096"},
	{name: "large messages up to the limit", send: cat(openFrame(sHold, 1), openFrame(sHold, 2), openFrame(sHold, 3), dataBegin(1, 8192-64, "x"), dataBegin(2, 8192-64, "x"), dataBegin(3, 4096-64, "x"))},
	{name: "large messages above it", send: cat(openFrame(sHold, 1), openFrame(sHold, 2), dataBegin(1, 8192-64, "x"), dataBegin(2, 8193-64, "x")), closed: "MaxRequestBytes is 16384"},
	{name: "large messages and a request", send: cat(openFrame(sHold, 1), openFrame(sHold, 2), dataBegin(1, 8192-64, "x"), dataBegin(2, 8192-64, "x"), callBegin(3, 8192, "a"), abortFrame(3)), want: []string{"ERROR BACK|NOTRUN 1 #3"}, call: true},
	{name: "a large message that was aborted counts until it is received", send: cat(openFrame(sHold, 1), openFrame(sHold, 2), dataBegin(1, 8192-64, "x"), abortFrame(1), dataBegin(2, 8193-64, "x")), closed: "MaxRequestBytes is 16384"},
	{name: "window comes back in quarters", send: cat(openFrame(sCount, 1), data(1, filler[:1024-64])), want: []string{"CREDIT BACK 0 #1 1024"}},
	{name: "window does not come back before", send: cat(openFrame(sCount, 1), data(1, filler[:1023-64]))},
	{name: "window comes back for an aborted message", send: cat(openFrame(sCount, 1), dataBegin(1, 960, "x"), abortFrame(1)), want: []string{"CREDIT BACK 0 #1 1024"}},
	{name: "window of another stream", send: cat(openFrame(sHold, 1), openFrame(sHold, 2), data(1, filler[:4032]), data(2, filler[:4032]))},

	// Request bytes: an OPEN counts 64 until LAST.
	{name: "request bytes overrun by an OPEN", send: cat(callBegin(1, 8192-64, "a"), callBegin(2, 8192-64, "b"), openFrame(sHold, 3)), closed: "MaxRequestBytes is 16384", call: true},
	{name: "request bytes with an OPEN exactly", send: cat(openFrame(sHold, 3), callBegin(1, 8192-64, "a"), callBegin(2, 8192-128, "b"), abortFrame(1), abortFrame(2)), want: []string{notRun1, "ERROR BACK|NOTRUN 1 #2"}},
	{name: "request bytes overrun because of an OPEN", send: cat(openFrame(sHold, 3), callBegin(1, 8192-64, "a"), callBegin(2, 8192-127, "b")), closed: "MaxRequestBytes is 16384", call: true},

	// Section 11.
	{name: "streams go on after drain", send: cat(openFrame(sEcho, 1), goAway(1), data(1, "x"), closeFrame(1)), want: []string{"GOAWAY 0 2 #0", `DATA BACK 0 #1 "x"`, well1}},

	// With metadata.
	{name: "META cut short", send: frame(FrameOpen, FlagMeta, sEcho, 1, uint16(3), "x"), closed: "shorter", hello: withMetadata(streamHello())},
	{name: "META and a payload", send: frame(FrameOpen, FlagMeta, sEcho, 1, metaField("k", "v"), "x"), closed: "OPEN with a payload", hello: withMetadata(streamHello())},
	{name: "META on DATA", send: cat(openFrame(sEcho, 1), frame(FrameData, FlagMeta, 0, 1, metaField("k", "v"), "abc"), closeFrame(1)), want: []string{`DATA BACK 0 #1 "abc"`, well1}, hello: withMetadata(streamHello())},
	{name: "META on DATA in pieces", send: cat(openFrame(sEcho, 1), frame(FrameData, bm|FlagMeta, 0, 1, uint32(5), metaField("k", "v"), "abc"), dataPart(0, 1, "de"), closeFrame(1)), want: []string{`DATA BACK 0 #1 "abcde"`, well1}, hello: withMetadata(streamHello())},
	{name: "META on a continuation", send: cat(openFrame(sEcho, 1), dataBegin(1, 5, "abc"), frame(FrameData, FlagMeta, 0, 1, metaField("k", "v"), "de")), closed: "BEGIN inside", hello: withMetadata(streamHello())},
	{name: "META on DATA cut short", send: cat(openFrame(sEcho, 1), frame(FrameData, FlagMeta, 0, 1, uint16(3), "x")), closed: "shorter", hello: withMetadata(streamHello())},
	{name: "META on CLOSE and RESET", send: cat(openFrame(sWait, 1), frame(FrameClose, FlagMeta, 0, 1, metaField("k", "v")), frame(FrameReset, FlagMeta, 1, 1, metaField("k", "v"))), want: []string{canceled1}, hello: withMetadata(streamHello())},
	{name: "META counts", send: cat(frame(FrameOpen, FlagMeta, sHold, 1, metaField("k", filler[:130])), callBegin(2, 8192-64, "a"), callBegin(3, 8192-128-135, "b")), closed: "MaxRequestBytes is 16384", call: true, hello: withMetadata(streamHello())},
}

func TestStreamAcceptorsView(t *testing.T) {
	for _, row := range streamAcceptorScripts {
		t.Run(strings.ReplaceAll(row.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			eachWay(t, row.run)
		})
	}
}

// Every frame of a stream closes the connection when the feature was not agreed
// on, and a side that may not open any says so.
func TestStreamsWithoutTheFeature(t *testing.T) {
	for name, f := range map[string][]byte{
		"OPEN": openFrame(sEcho, 1), "DATA": data(1, "x"), "CLOSE": closeFrame(1), "RESET": resetFrame(1), "CREDIT": streamCredit(1, 1),
		"OPEN with BACK": frame(FrameOpen, FlagBack, 0, 1), "DATA with BACK": frame(FrameData, FlagBack, 0, 1), "CREDIT with BACK": frame(FrameCredit, FlagBack, 0, 1, uint32(1)),
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			eachWay(t, func(t *testing.T, w way) {
				a := meetStreams(t, w, nil, adversaryHello())
				if _, err := a.c.OpenStream(context.Background(), "theirs"); CodeOf(err) != Unimplemented || !NotRun(err) {
					t.Error(err)
				}
				a.send(f)
				a.closed("a feature that was not agreed on")
				a.nothingLeft()
			})
		})
	}
}

// A refusal that is under way when the opener resets the stream, many times.
func TestRefusedStreamIsReset(t *testing.T) {
	eachWay(t, func(t *testing.T, w way) {
		a := meetStreams(t, w, nil, nil)
		one := cat(frame(FrameOpen, 0, 0, 1, uint8(1), "x"), dataBegin(1, 99, "x"), resetFrame(1))
		for range 200 {
			a.send(one)
			if h, b := a.next(FrameReset); describe(h, b) != refused1 {
				t.Fatal(describe(h, b))
			}
		}
		a.alive()
		a.nothingLeft()
	})
}

// The end of the connection while a refusal cannot leave.
func TestConnectionEndsWhileAStreamIsRefused(t *testing.T) {
	for i := range 20 {
		a := meetStreams(t, way{"pipe", i%2 == 0}, nil, nil)
		for id := range uint32(8) {
			a.send(frame(FrameOpen, 0, 0, id+1, uint8(1), "x"))
		}
		a.nothingLeft()
	}
}

// Drain: streams that cross it are accepted, those behind the ack are not, and
// this side opens none that it has not opened yet.
func TestStreamsAndDrain(t *testing.T) {
	eachWay(t, func(t *testing.T, w way) {
		a := meetStreams(t, w, nil, nil)
		done := a.shutdown(context.Background())
		a.send(cat(openFrame(sEcho, 1), goAway(goAwayAck), data(1, "x"), closeFrame(1)))
		if h, b := a.next(FrameData); string(b) != "x" {
			t.Errorf("%+v %q", h, b)
		}
		if h, b := a.next(FrameClose); describe(h, b) != well1 {
			t.Error(describe(h, b))
		}
		if h, _ := a.next(FrameGoAway); h.Code != goAwayDone {
			t.Errorf("%+v instead of done", h)
		}
		a.nc.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
		a.nothingLeft()
	})
	t.Run("OPEN after the ack", func(t *testing.T) {
		eachWay(t, func(t *testing.T, w way) {
			a := meetStreams(t, w, nil, nil)
			done := a.shutdown(context.Background())
			a.send(cat(openFrame(sHold, 1), goAway(goAwayAck), openFrame(sHold, 2)))
			a.closed("OPEN after GOAWAY ack")
			<-done
			a.nothingLeft()
		})
	})
	t.Run("not opened yet", func(t *testing.T) {
		eachWay(t, func(t *testing.T, w way) {
			a := meetStreams(t, w, nil, nil)
			open, err := a.c.OpenStream(context.Background(), "theirs")
			if err == nil {
				err = open.SendHeader()
			}
			if err != nil {
				t.Fatal(err)
			}
			a.next(FrameOpen)
			s, err := a.c.OpenStream(context.Background(), "theirs")
			if err != nil {
				t.Fatal(err)
			}
			a.send(goAway(goAwayDrain))
			if h, _ := a.next(FrameGoAway); h.Code != goAwayAck {
				t.Errorf("%+v instead of ack", h)
			}
			err = s.Send([]byte("x"))
			wantCode(t, err, Unavailable, true)
			if err := open.Send([]byte("x")); err != nil {
				t.Error(err)
			}
			a.next(FrameData)
			a.send(lastWell)
			if _, err := open.Recv(); err != io.EOF {
				t.Error(err)
			}
			a.nothingLeft()
		})
	})
}

// The end of the connection, for streams in every state, in both roles.
func TestConnectionEndsStreamsInEveryState(t *testing.T) {
	t.Parallel()
	for _, how := range []struct {
		name   string
		end    func(a *adversary)
		notRun bool // of streams that were opened
	}{
		{"broken off", func(a *adversary) { a.nc.Close() }, false},
		{"failed", func(a *adversary) { a.send(goAway(goAwayFailed, uint16(DataLoss), "oops")) }, false},
		{"violation", func(a *adversary) { a.send(frame(0x7f, 0, 0, 0)); io.Copy(io.Discard, a.nc) }, false},
		{"done", func(a *adversary) { a.send(goAway(goAwayDone)); io.Copy(io.Discard, a.nc) }, true},
		{"closed here", func(a *adversary) {
			go a.c.Close()
			io.Copy(io.Discard, a.nc)
		}, false},
	} {
		t.Run(strings.ReplaceAll(how.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			eachWay(t, func(t *testing.T, w way) {
				cfg := streamLimits(nil)
				cfg.CloseTimeout = 200 * time.Millisecond
				a := meetStreams(t, w, cfg, nil)
				a.send(cat(openFrame(sWait, 1), openFrame(sRecv, 2), openFrame(sRecv, 3), dataBegin(3, 99, "x"),
					openFrame(sWait, 4), closeFrame(4), openFrame(sHold, 5), resetFrame(5), openFrame(sReset, 6), openFrame(sHalf, 7), dataBegin(7, 99, "x")))
				for range 7 {
					<-a.ran
				}
				open := func(sends bool) *Stream {
					s, err := a.c.OpenStream(context.Background(), "theirs")
					if err == nil && sends {
						err = s.SendHeader()
						a.next(FrameOpen)
					}
					if err != nil {
						t.Fatal(err)
					}
					return s
				}
				receives, sends, never, closed := open(true), open(true), open(false), open(true)
				go closed.CloseSend()
				a.next(FrameClose)
				errs := make(chan error, 4)
				go func() { _, err := receives.Recv(); errs <- err }()
				go func() {
					for {
						if err := sends.Send([]byte(filler[:4000])); err != nil {
							errs <- err
							return
						}
					}
				}()
				go func() { _, err := closed.Recv(); errs <- err }()
				go func() { _, err := closed.Header(); errs <- err }()
				a.next(FrameData)
				eventually(t, func() bool { a.c.out.Lock(); defer a.c.out.Unlock(); return !sends.gate.Empty() })
				go how.end(a)
				for range 4 {
					err := receive(t, "an end", errs)
					if err == nil || err == io.EOF || CodeOf(err) == OK || NotRun(err) != how.notRun {
						t.Errorf("%v (not run: %v)", err, NotRun(err))
					}
				}
				<-a.c.Done()
				err := never.Send(nil)
				if err == nil || err == io.EOF || !NotRun(err) {
					t.Errorf("never opened: %v (not run: %v)", err, NotRun(err))
				}
				a.nothingLeft()
			})
		})
	}
}

// What follows a message that cannot be completed: ABORT, behind which the slot
// is free when LAST has come, but nothing after this side's own RESET.
func TestStreamEndsInsideAMessageOfTheOpeners(t *testing.T) {
	for _, row := range []struct {
		name string
		send []byte
		own  bool
		code Code // of Send's error; OK: io.EOF
	}{
		{"LAST", lastWell, false, OK},
		{"RESET with LAST", resetBack(FlagLast, 300), false, 300},
		{"RESET", resetBack(0, 300), false, 300},
		{"own RESET", nil, true, Aborted},
	} {
		t.Run(strings.ReplaceAll(row.name, " ", "-"), func(t *testing.T) {
			eachWay(t, func(t *testing.T, w way) {
				a := meetStreams(t, w, nil, nil)
				s, err := a.c.OpenStream(context.Background(), "theirs")
				if err != nil {
					t.Fatal(err)
				}
				sent := make(chan error, 1)
				go func() { sent <- s.Send(largeRequest()) }()
				if h, _ := a.next(FrameData); h.Flags&FlagBegin == 0 {
					t.Fatalf("%+v", h)
				}
				a.send(row.send)
				if row.own {
					s.Reset(Aborted)
				}
				eventually(t, func() bool { a.c.out.Lock(); defer a.c.out.Unlock(); return s.err != nil })
				for {
					h, b := a.next(FrameData, FrameAbort, FrameReset, FrameOpen)
					if h.Type == FrameData && h.Flags&FlagMore != 0 {
						continue
					}
					if want := map[bool]FrameType{false: FrameAbort, true: FrameReset}[row.own]; h.Type != want || h.ID != 1 {
						t.Errorf("%s, want %v", describe(h, b), want)
					}
					break
				}
				if err := receive(t, "Send", sent); row.code == OK && err != io.EOF || row.code != OK && CodeOf(err) != row.code {
					t.Errorf("Send: %v", err)
				}
				if row.own || row.name == "RESET" {
					a.send(lastWell)
				}
				eventually(t, func() bool { a.c.out.Lock(); defer a.c.out.Unlock(); return len(a.c.free) == 1 })
				done := a.calls(context.Background(), []byte("x"))
				if h, b := a.next(FrameCall, FrameData, FrameAbort); h.Type != FrameCall || h.ID != 1 {
					t.Fatal(describe(h, b))
				}
				a.send(reply(1, "y"))
				if o := a.await(done); string(o.reply) != "y" {
					t.Error(o.err)
				}
				a.alive()
				a.nothingLeft()
			})
		})
	}
}
