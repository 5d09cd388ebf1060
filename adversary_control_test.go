package plugwire

import (
	"fmt"
	"math"
	"testing"
)

func methodEntry(number uint16, name string) []byte {
	return cat([]byte{byte(number), byte(number >> 8), byte(len(name))}, []byte(name))
}

// manyMethods are METHODS frames of n methods, the first with the given number.
func manyMethods(first, n int) (b []byte) {
	var p []byte
	for i := range n {
		p = append(p, methodEntry(uint16(first+i), fmt.Sprintf("m%d", first+i))...)
		if len(p) > 4000 || i == n-1 {
			b = append(b, frame(FrameMethods, 0, 0, 0, p)...)
			p = nil
		}
	}
	return b
}

func noteFrame(payload string) []byte { return frame(FrameNotify, 0, mNote, 0, payload) }
func ask() []byte                     { return frame(FrameCredit, 0, 0, 0) }
func report(bytes, messages uint64) []byte {
	return frame(FrameCredit, 0, 0, 0, bytes, messages)
}
func goAway(code uint16, parts ...any) []byte { return frame(FrameGoAway, 0, code, 0, parts...) }

// Everything but calls: frames, methods, one-way messages, credit, liveness and
// the end of a connection, by the tables of docs/PROTOCOL.md.
var controlScripts = []script{
	// Section 3: frames.
	{name: "frame of MaxFrame", send: frame(0x80, 0, 0, 0, filler[:4096])},
	{name: "frame over MaxFrame", send: claim(4097, FrameCall, 0, mEcho, 1), closed: "4097 bytes, MaxFrame is 4096"},
	{name: "frame of 2^31-1", send: claim(math.MaxInt32, FramePing, 0, 0, 0), closed: "2147483647 bytes"},
	{name: "frame of 2^31", send: claim(1<<31, FrameCall, 0, mEcho, 1), closed: "2147483648 bytes"},
	{name: "frame of 2^32-1", send: claim(math.MaxUint32, FrameNotify, 0, mNote, 0), closed: "4294967295 bytes"},
	{name: "skippable over MaxFrame", send: claim(4097, 0x90, 0, 0, 0), closed: "4097 bytes"},
	{name: "skippable with every flag", send: cat(frame(0x80, 0xff, 0xffff, math.MaxUint32, "x"), frame(0xff, 0xff, 0, 0))},
	{name: "type 0", send: frame(0, 0, 0, 0), closed: "unknown frame type(0x00)"},
	{name: "type 0x13", send: frame(0x13, 0, 0, 0), closed: "unknown frame type(0x13)"},
	{name: "type 0x7f", send: frame(0x7f, 0, 0, 0, "abc"), closed: "unknown frame type(0x7f)"},
	{name: "flag LAST on a CALL", send: frame(FrameCall, FlagLast, mEcho, 1), closed: "CALL frame with flag LAST"},
	{name: "flag BACK on a CALL", send: frame(FrameCall, FlagBack, mEcho, 1), closed: "CALL frame with flag BACK"},
	{name: "flag 0x80", send: frame(FramePing, 0x80, 0, 0, "12345678"), closed: "PING frame with flag 0x80"},
	{name: "flag DEADLINE on a NOTIFY", send: frame(FrameNotify, FlagDeadline, mNote, 0, uint64(0)), closed: "NOTIFY frame with flag DEADLINE"},
	{name: "code and id without meaning", send: cat(frame(FramePing, 0, 7, 7, "12345678"), frame(FrameMethods, 0, 7, 7), frame(FrameCancel, 0, 7, 1), frame(FrameCredit, 0, 7, 0)), want: []string{"CREDIT 0 0 #0 0/0"}},

	// Features that were not agreed on.
	{name: "META on a CALL", send: frame(FrameCall, FlagMeta, mEcho, 1, uint16(0)), closed: "metadata"},
	{name: "META on a NOTIFY", send: frame(FrameNotify, FlagMeta, mNote, 0, uint16(0)), closed: "metadata"},
	{name: "OPEN", send: frame(FrameOpen, 0, mEcho, 1), closed: "OPEN, a feature"},
	{name: "DATA", send: frame(FrameData, 0, 0, 1, "x"), closed: "DATA, a feature"},
	{name: "CLOSE", send: frame(FrameClose, 0, 0, 1), closed: "CLOSE, a feature"},
	{name: "RESET", send: frame(FrameReset, 0, 1, 1), closed: "RESET, a feature"},
	{name: "CLOSE with LAST", send: frame(FrameClose, FlagBack|FlagLast, 0, 1), closed: "CLOSE, a feature"},
	{name: "CREDIT for a stream", send: frame(FrameCredit, 0, 0, 1, uint32(9)), closed: "CREDIT"},
	{name: "SWITCH", send: frame(FrameSwitch, 0, 0, 0), closed: "SWITCH, a feature"},
	{name: "HELLO again", send: frame(FrameHello, 0, 0, 0, appendHello(nil, adversaryHello())), closed: "HELLO after the handshake"},
	{name: "PROOF without a secret", send: frame(FrameProof, 0, 0, 0, filler[:32]), closed: "PROOF after the handshake"},

	// Section 6: methods.
	{name: "METHODS empty", send: frame(FrameMethods, 0, 0, 0)},
	{name: "METHODS in pieces, with others between", send: cat(frame(FrameMethods, FlagMore, 0, 0, methodEntry(7, "a")), callFrame(1, "abcdefgh"), frame(FrameMethods, 0, 0, 0, methodEntry(65535, "b"))), want: []string{replyAll}},
	{name: "METHODS said again", send: cat(frame(FrameMethods, 0, 0, 0, methodEntry(7, "a")), frame(FrameMethods, 0, 0, 0, methodEntry(7, "a"), methodEntry(8, "b")))},
	{name: "METHODS fallback twice", send: frame(FrameMethods, 0, 0, 0, methodEntry(0, ""), methodEntry(0, ""))},
	{name: "METHODS entry cut short", send: frame(FrameMethods, 0, 0, 0, uint16(1), uint8(3), "ab"), closed: "shorter"},
	{name: "METHODS header of an entry cut short", send: frame(FrameMethods, 0, 0, 0, uint16(1)), closed: "shorter"},
	{name: "METHODS number 0 with a name", send: frame(FrameMethods, 0, 0, 0, methodEntry(0, "a")), closed: `entry 0 "a"`},
	{name: "METHODS number without a name", send: frame(FrameMethods, 0, 0, 0, methodEntry(3, "")), closed: `entry 3 ""`},
	{name: "METHODS name renumbered", send: frame(FrameMethods, 0, 0, 0, methodEntry(1, "a"), methodEntry(2, "a")), closed: `"a" renumbered`},
	{name: "METHODS name renumbered later", send: cat(frame(FrameMethods, 0, 0, 0, methodEntry(1, "a")), frame(FrameMethods, 0, 0, 0, methodEntry(2, "a"))), closed: `"a" renumbered`},
	{name: "METHODS number renamed", send: frame(FrameMethods, 0, 0, 0, methodEntry(1, "a"), methodEntry(1, "b")), closed: "number 1"},
	{name: "METHODS number renamed later", send: cat(frame(FrameMethods, 0, 0, 0, methodEntry(1, "a")), frame(FrameMethods, 0, 0, 0, methodEntry(1, "b"))), closed: "number 1"},

	// Section 8: one-way messages.
	{name: "NOTIFY", send: cat(noteFrame("a"), noteFrame("bc"), ask()), want: []string{"CREDIT 0 0 #0 3/2"}},
	{name: "NOTIFY in pieces", send: cat(frame(FrameNotify, bm, mNote, 0, uint32(5), "ab"), frame(FrameNotify, FlagMore, 0, 0, "c"), frame(FrameNotify, 0, 0, 0, "de"), ask()), want: []string{"CREDIT 0 0 #0 5/1"}},
	{name: "NOTIFY with an id", send: frame(FrameNotify, 0, mNote, 1, "x"), closed: "NOTIFY in slot 1"},
	{name: "NOTIFY of an unannounced number", send: frame(FrameNotify, 0, mUnannounced, 0, "x"), closed: "number 5"},
	{name: "NOTIFY by an unknown name", send: cat(frame(FrameNotify, 0, 0, 0, uint8(4), "nope", "abc"), ask()), want: []string{"CREDIT 0 0 #0 3/1"}},
	{name: "NOTIFY by an unknown name in pieces", send: cat(frame(FrameNotify, bm, 0, 0, uint32(5), uint8(4), "nope", "ab"), frame(FrameNotify, 0, 0, 0, "cde"), ask()), want: []string{"CREDIT 0 0 #0 5/1"}},
	{name: "NOTIFY without a name", send: frame(FrameNotify, 0, 0, 0, uint8(0)), closed: "without a name"},
	{name: "NOTIFY with BEGIN while one is incomplete", send: cat(frame(FrameNotify, bm, mNote, 0, uint32(5), "ab"), frame(FrameNotify, bm, mNote, 0, uint32(5), "ab")), closed: "BEGIN inside"},
	{name: "NOTIFY continuation of nothing", send: frame(FrameNotify, FlagMore, mNote, 0, "ab"), closed: "not begun"},
	{name: "NOTIFY total over MaxMessage", send: frame(FrameNotify, bm, mNote, 0, uint32(8193), "ab"), closed: "MaxMessage is 8192"},
	{name: "NOTIFY whole above MaxMessage", send: noteFrame(filler[:4097]), closed: "MaxMessage is 4096", cfg: limited(func(l *Limits) { l.MaxFrame, l.MaxMessage, l.OneWayWindow = 8192, 4096, 16384 })},
	{name: "NOTIFY sum passes the total", send: cat(frame(FrameNotify, bm, mNote, 0, uint32(3), "ab"), frame(FrameNotify, 0, 0, 0, "cd")), closed: "exceed"},
	{name: "NOTIFY sum reaches the total with MORE", send: cat(frame(FrameNotify, bm, mNote, 0, uint32(3), "ab"), frame(FrameNotify, FlagMore, 0, 0, "c")), closed: "announced 3 bytes"},
	{name: "NOTIFY sum below the total", send: cat(frame(FrameNotify, bm, mNote, 0, uint32(4), "ab"), frame(FrameNotify, 0, 0, 0, "c")), closed: "end at 3 of 4"},
	{name: "NOTIFY empty continuation", send: cat(frame(FrameNotify, bm, mNote, 0, uint32(4), "ab"), frame(FrameNotify, FlagMore, 0, 0)), closed: "empty"},
	{name: "NOTIFY aborted", send: cat(noteFrame("a"), frame(FrameNotify, bm, mNote, 0, uint32(5), "ab"), abortFrame(0), noteFrame("b"), ask()), want: []string{"CREDIT 0 0 #0 7/3"}},
	{name: "NOTIFY aborted twice", send: cat(frame(FrameNotify, bm, mNote, 0, uint32(5), "ab"), abortFrame(0), abortFrame(0)), closed: "ABORT of a one-way message"},
	{name: "ABORT with id 0 and nothing incomplete", send: abortFrame(0), closed: "ABORT of a one-way message"},
	{name: "ABORT with id 0 and BACK", send: cat(frame(FrameNotify, bm, mNote, 0, uint32(5), "ab"), frame(FrameAbort, FlagBack, 0, 0)), closed: "ABORT"},
	{name: "window exactly", send: cat(frame(FrameNotify, 0, mSlow, 0, filler[:1000]), noteFrame(filler[:4096-1000-128]))},
	{name: "window overrun", send: cat(frame(FrameNotify, 0, mSlow, 0, filler[:1000]), noteFrame(filler[:4096-1000-127])), closed: "OneWayWindow is 4096"},
	{name: "window overrun by a total", send: cat(frame(FrameNotify, 0, mSlow, 0, filler[:1000]), frame(FrameNotify, bm, mNote, 0, uint32(4096-1000-127), "x")), closed: "OneWayWindow is 4096"},
	{name: "window overrun by empty messages", send: cat(frame(FrameNotify, 0, mSlow, 0, filler[:4096-128]), noteFrame(""), noteFrame("")), closed: "OneWayWindow is 4096"},
	{name: "window: a larger message alone", send: cat(frame(FrameNotify, bm, mNote, 0, uint32(8192), filler[:4000]), frame(FrameNotify, FlagMore, 0, 0, filler[:4000]), frame(FrameNotify, 0, 0, 0, filler[:192]), ask()), want: []string{"CREDIT 0 0 #0 8192/1"}},
	{name: "window: a larger message not alone", send: cat(frame(FrameNotify, 0, mSlow, 0), frame(FrameNotify, bm, mNote, 0, uint32(8192), "x")), closed: "OneWayWindow is 4096"},

	// Section 8.2: credit.
	{name: "CREDIT asked for when nothing came", send: ask(), want: []string{"CREDIT 0 0 #0 0/0"}},
	{name: "CREDIT asked for while a handler runs", send: cat(frame(FrameNotify, 0, mSlow, 0, "x"), ask())},
	{name: "CREDIT report of nothing", send: cat(report(0, 0), report(0, 0))},
	{name: "CREDIT of 1 byte", send: frame(FrameCredit, 0, 0, 0, uint8(1)), closed: "CREDIT of 1 bytes"},
	{name: "CREDIT of 15 bytes", send: frame(FrameCredit, 0, 0, 0, filler[:15]), closed: "CREDIT of 15 bytes"},
	{name: "CREDIT of 17 bytes", send: frame(FrameCredit, 0, 0, 0, filler[:17]), closed: "CREDIT of 17 bytes"},
	{name: "CREDIT for more bytes than were sent", send: report(1, 0), closed: "CREDIT for 1 bytes"},
	{name: "CREDIT for more messages than were sent", send: report(0, 1), closed: "in 1 messages"},
	{name: "CREDIT for 2^64-1", send: report(math.MaxUint64, math.MaxUint64), closed: "CREDIT for 18446744073709551615"},
	{name: "CREDIT with BACK for id 0", send: frame(FrameCredit, FlagBack, 0, 0), closed: "CREDIT"},

	// Section 10: liveness.
	{name: "PING of 7 bytes", send: frame(FramePing, 0, 0, 0, "1234567"), closed: "PING of 7 bytes"},
	{name: "PING of 9 bytes", send: frame(FramePing, 0, 0, 0, "123456789"), closed: "PING of 9 bytes"},
	{name: "PING of nothing", send: frame(FramePing, 0, 0, 0), closed: "PING of 0 bytes"},
	{name: "PONG of 7 bytes", send: frame(FramePong, 0, 0, 0, "1234567"), closed: "PONG of 7 bytes"},
	{name: "PONG that answers nothing", send: cat(frame(FramePong, 0, 0, 0, "12345678"), frame(FramePong, 0, 0, 0, uint64(1)))},

	// Section 11: the end.
	{name: "GOAWAY 0", send: goAway(0), closed: "GOAWAY with unknown code 0"},
	{name: "GOAWAY 5", send: goAway(5), closed: "GOAWAY with unknown code 5"},
	{name: "GOAWAY drain with a payload", send: goAway(1, "x"), closed: "GOAWAY 1 with a payload"},
	{name: "GOAWAY ack with a payload", send: goAway(2, "x"), closed: "GOAWAY 2 with a payload"},
	{name: "GOAWAY done with a payload", send: goAway(3, "x"), closed: "GOAWAY 3 with a payload"},
	{name: "GOAWAY failed without a status", send: goAway(4), closed: "GOAWAY failed without a status"},
	{name: "GOAWAY failed with half a status", send: goAway(4, "x"), closed: "GOAWAY failed without a status"},
	{name: "GOAWAY ack without drain", send: goAway(2), closed: "ack without drain"},
	{name: "GOAWAY drain", send: goAway(1), want: []string{"GOAWAY 0 2 #0"}},
	{name: "GOAWAY drain again", send: cat(goAway(1), goAway(1), callFrame(1, "abcdefgh"), goAway(1)), want: []string{"GOAWAY 0 2 #0", replyAll}},
	{name: "GOAWAY drain while calls go on", send: cat(callBegin(1, 8, "abc"), goAway(1), callPart(0, 1, "defgh"), noteFrame("x"), ask()), want: []string{"GOAWAY 0 2 #0", replyAll, "CREDIT 0 0 #0 1/1"}},
}

func TestControlFrames(t *testing.T) {
	runScripts(t, append(controlScripts, // these not in a variable, which each child would make
		script{name: "METHODS 4096", send: manyMethods(1, 4096)},
		script{name: "METHODS 4097", send: manyMethods(1, 4097), closed: "more than 4096 methods"}))
}
