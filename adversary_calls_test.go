package plugwire

import (
	"math"
	"runtime"
	"strings"
	"testing"
)

// script is a row of the tables: what the adversary sends at once, and what
// comes of it. closed is what the reason says when the connection is closed.
type script struct {
	name   string
	send   []byte
	want   []string
	closed string
	cfg    *Config
}

func (s *script) run(t *testing.T, w way) {
	a := meet(t, w, s.cfg, nil)
	a.send(s.send)
	if s.closed != "" {
		a.closed(s.closed)
		return
	}
	a.alive(s.want...)
}

func runScripts(t *testing.T, rows []script) {
	for _, row := range rows {
		t.Run(strings.ReplaceAll(row.name, " ", "-"), func(t *testing.T) {
			if row.name == "deadline passed while receiving" && runtime.GOOS == "windows" {
				t.Skip("the clock may stand still for longer than its nanosecond")
			}
			t.Parallel()
			eachWay(t, row.run)
		})
	}
}

func limited(change func(*Limits)) *Config {
	l := adversaryLimits
	change(&l)
	return &Config{Limits: l}
}

const (
	bm = FlagBegin | FlagMore
	nr = FlagBack | FlagNotRun
)

var (
	filler   = strings.Repeat("x", 8192)
	notRun1  = "ERROR BACK|NOTRUN 1 #1"
	replyAll = `REPLY BACK 0 #1 "abcdefgh"`
)

func callFrame(id uint32, payload string) []byte { return frame(FrameCall, 0, mEcho, id, payload) }
func slowCall(id uint32) []byte                  { return frame(FrameCall, 0, mSlow, id, "s") }
func callBegin(id, total uint32, payload string) []byte {
	return frame(FrameCall, bm, mEcho, id, total, payload)
}
func callPart(flags FrameFlags, id uint32, payload string) []byte {
	return frame(FrameCall, flags, 0, id, payload)
}
func abortFrame(id uint32) []byte  { return frame(FrameAbort, 0, 1, id) }
func cancelFrame(id uint32) []byte { return frame(FrameCancel, 0, 0, id) }

// The acceptor's view, section 7.5 of docs/PROTOCOL.md, row by row.
var acceptorScripts = []script{
	// State: free.
	{name: "free CALL whole", send: callFrame(1, "abcdefgh"), want: []string{replyAll}},
	{name: "free CALL with BEGIN", send: cat(callBegin(1, 8, "abc"), callPart(FlagMore, 1, "de"), callPart(0, 1, "fgh")), want: []string{replyAll}},
	{name: "free CALL with BEGIN and nothing else yet", send: callBegin(1, 8, "")},
	{name: "free CALL continuation", send: callPart(FlagMore, 1, "x"), closed: "not begun"},
	{name: "free CANCEL", send: cancelFrame(1)},
	{name: "free CANCEL of a slot used before", send: cat(callFrame(1, "abcdefgh"), cancelFrame(1), cancelFrame(1)), want: []string{replyAll}},
	{name: "free CANCEL of the last slot", send: cancelFrame(8)},
	{name: "free ABORT", send: abortFrame(1), closed: "ABORT"},
	{name: "free ABORT of a slot used before", send: cat(callFrame(1, "x"), abortFrame(1)), closed: "ABORT"},

	// State: receiving.
	{name: "receiving CALL with BEGIN", send: cat(callBegin(1, 8, "abc"), callBegin(1, 8, "abc")), closed: "BEGIN"},
	{name: "receiving CALL with DEADLINE", send: cat(callBegin(1, 8, "abc"), frame(FrameCall, FlagDeadline, 0, 1, uint64(9), "defgh")), closed: "BEGIN inside"},
	{name: "receiving CALL with META", send: cat(callBegin(1, 8, "abc"), frame(FrameCall, FlagMeta, 0, 1, uint16(0), "defgh")), closed: "plugwire"},
	{name: "receiving continuation with any code", send: cat(callBegin(1, 8, "abc"), frame(FrameCall, 0, 999, 1, "defgh")), want: []string{replyAll}},
	{name: "receiving CANCEL", send: cat(callBegin(1, 8, "abc"), cancelFrame(1), callPart(0, 1, "defgh")), want: []string{notRun1}},
	{name: "receiving CANCEL then ABORT", send: cat(callBegin(1, 8, "abc"), cancelFrame(1), abortFrame(1)), want: []string{notRun1}},
	{name: "receiving ABORT", send: cat(callBegin(1, 8, "abc"), abortFrame(1)), want: []string{notRun1}},
	{name: "receiving ABORT then the slot again", send: cat(callBegin(1, 8, "abc"), abortFrame(1), callFrame(1, "abcdefgh")), want: []string{notRun1, replyAll}},
	{name: "receiving ABORT then cancelled again", send: cat(callBegin(1, 8, "abc"), cancelFrame(1), abortFrame(1), cancelFrame(1), callFrame(1, "abcdefgh")), want: []string{notRun1, replyAll}},
	{name: "receiving ABORT twice", send: cat(callBegin(1, 8, "abc"), abortFrame(1), abortFrame(1)), closed: "ABORT"},
	{name: "receiving ABORT then a continuation", send: cat(callBegin(1, 8, "abc"), abortFrame(1), callPart(FlagMore, 1, "d")), closed: "not begun"},
	{name: "receiving others interleave", send: cat(callBegin(1, 8, "abc"), callFrame(2, "two"), callBegin(3, 5, "thr"), callPart(0, 1, "defgh"), callPart(0, 3, "ee")),
		want: []string{replyAll, `REPLY BACK 0 #2 "two"`, `REPLY BACK 0 #3 "three"`}},

	// State: running.
	{name: "running CALL whole", send: cat(slowCall(1), callFrame(1, "x")), closed: "in use"},
	{name: "running CALL with BEGIN", send: cat(slowCall(1), callBegin(1, 8, "abc")), closed: "in use"},
	{name: "running CALL continuation", send: cat(slowCall(1), callPart(FlagMore, 1, "x")), closed: "not begun"},
	{name: "running CANCEL", send: cat(frame(FrameCall, 0, mWait, 1), cancelFrame(1)), want: []string{"ERROR BACK 1 #1"}},
	{name: "running CANCEL repeated", send: cat(frame(FrameCall, 0, mWait, 1), cancelFrame(1), cancelFrame(1), cancelFrame(1)), want: []string{"ERROR BACK 1 #1"}},
	{name: "running CANCEL frees nothing", send: cat(slowCall(1), cancelFrame(1), callFrame(1, "x")), closed: "in use"},
	{name: "running ABORT", send: cat(slowCall(1), abortFrame(1)), closed: "ABORT"},
	{name: "running deadline", send: frame(FrameCall, FlagDeadline, mWait, 1, uint64(250e6)), want: []string{"ERROR BACK 4 #1"}},

	// Ids.
	{name: "id 0 CALL", send: callFrame(0, "x"), closed: "slot 0"},
	{name: "id 0 CALL with BEGIN", send: callBegin(0, 8, "abc"), closed: "slot 0"},
	{name: "id 0 CANCEL", send: cancelFrame(0), closed: "slot 0"},
	{name: "id beyond the limit CALL", send: callFrame(9, "x"), closed: "slot 9, MaxCalls is 8"},
	{name: "id beyond the limit CANCEL", send: cancelFrame(9), closed: "slot 9"},
	{name: "id beyond the limit ABORT", send: abortFrame(9), closed: "slot 9"},
	{name: "id 2^31 CALL", send: callFrame(1<<31, "x"), closed: "slot 2147483648"},
	{name: "id 2^32-1 CALL", send: callFrame(math.MaxUint32, "x"), closed: "slot 4294967295"},
	{name: "id 2^32-1 CANCEL", send: cancelFrame(math.MaxUint32), closed: "slot 4294967295"},
	{name: "id 2^32-1 ABORT", send: abortFrame(math.MaxUint32), closed: "slot 4294967295"},

	// Methods, deadlines, names.
	{name: "unknown name", send: frame(FrameCall, 0, 0, 1, uint8(4), "nope", "x"), want: []string{"ERROR BACK|NOTRUN 12 #1"}},
	{name: "known name", send: frame(FrameCall, 0, 0, 1, uint8(4), "echo", "abcdefgh"), want: []string{replyAll}},
	{name: "unknown name in pieces", send: cat(frame(FrameCall, bm, 0, 1, uint32(4), uint8(4), "nope", "x"), callPart(0, 1, "yzz")), want: []string{"ERROR BACK|NOTRUN 12 #1"}},
	{name: "number never announced", send: frame(FrameCall, 0, mUnannounced, 1), closed: "number 5"},
	{name: "number 65535", send: frame(FrameCall, 0, 65535, 1), closed: "number 65535"},
	{name: "empty name", send: frame(FrameCall, 0, 0, 1, uint8(0)), closed: "without a name"},
	{name: "name cut short", send: frame(FrameCall, 0, 0, 1, uint8(5), "echo"), closed: "shorter"},
	{name: "no room for a name", send: frame(FrameCall, 0, 0, 1), closed: "shorter"},
	{name: "deadline passed", send: frame(FrameCall, FlagDeadline, mEcho, 1, uint64(0), "x"), want: []string{"ERROR BACK|NOTRUN 4 #1"}},
	{name: "deadline passed while receiving", send: cat(frame(FrameCall, bm|FlagDeadline, mEcho, 1, uint32(2), uint64(1), "x"), callPart(0, 1, "y")), want: []string{"ERROR BACK|NOTRUN 4 #1"}},
	{name: "deadline at its most", send: frame(FrameCall, FlagDeadline, mEcho, 1, uint64(math.MaxInt64), "abcdefgh"), want: []string{replyAll}},
	{name: "deadline out of range", send: frame(FrameCall, FlagDeadline, mEcho, 1, uint64(1<<63), "x"), closed: "deadline out of range"},
	{name: "deadline cut short", send: frame(FrameCall, FlagDeadline, mEcho, 1, "1234567"), closed: "shorter"},

	// Section 4: what is wrong with a message.
	{name: "total 0", send: callBegin(1, 0, ""), closed: "message of 0 bytes"},
	{name: "total cut short", send: frame(FrameCall, bm, mEcho, 1, "abc"), closed: "message of 0 bytes"},
	{name: "total over MaxMessage", send: callBegin(1, 8193, ""), closed: "message of 8193 bytes, MaxMessage is 8192"},
	{name: "total 2^31", send: callBegin(1, 1<<31, ""), closed: "message of 2147483648 bytes"},
	{name: "total 2^32-1", send: callBegin(1, math.MaxUint32, ""), closed: "message of 4294967295 bytes"},
	{name: "total exactly MaxMessage", send: cat(callBegin(1, 8192, filler[:4092]), callPart(FlagMore, 1, filler[:4096]), callPart(0, 1, "1234")),
		want: []string{`REPLY BEGIN|MORE|BACK 0 #1 "\x00 \x00\x00xxxxxxxxxxxxxxxx"`, `REPLY MORE|BACK 0 #1 "xxxxxxxxxxxxxxxxxxxx"`, `REPLY BACK 0 #1 "1234"`}},
	{name: "whole above MaxMessage", send: callFrame(1, filler[:4097]), closed: "MaxMessage is 4096",
		cfg: limited(func(l *Limits) { l.MaxFrame, l.MaxMessage = 8192, 4096 })},
	{name: "BEGIN without MORE", send: frame(FrameCall, FlagBegin, mEcho, 1, uint32(8), "abc"), closed: "without MORE"},
	{name: "BEGIN holds it all", send: callBegin(1, 3, "abc"), closed: "whole message"},
	{name: "BEGIN holds more", send: callBegin(1, 3, "abcd"), closed: "whole message"},
	{name: "sum passes the total", send: cat(callBegin(1, 4, "abc"), callPart(0, 1, "de")), closed: "exceed"},
	{name: "sum passes the total with MORE", send: cat(callBegin(1, 4, "abc"), callPart(FlagMore, 1, "de")), closed: "exceed"},
	{name: "sum reaches the total with MORE", send: cat(callBegin(1, 4, "abc"), callPart(FlagMore, 1, "d")), closed: "announced 4 bytes"},
	{name: "sum below the total", send: cat(callBegin(1, 5, "abc"), callPart(0, 1, "d")), closed: "end at 4 of 5"},
	{name: "empty continuation", send: cat(callBegin(1, 5, "abc"), callPart(FlagMore, 1, "")), closed: "empty"},
	{name: "empty final continuation", send: cat(callBegin(1, 5, "abc"), callPart(0, 1, "")), closed: "fragment"},

	// Request bytes.
	{name: "request bytes exactly", send: cat(callBegin(1, 8192-64, "a"), callBegin(2, 8192-64, "b"), abortFrame(1), abortFrame(2)), want: []string{notRun1, "ERROR BACK|NOTRUN 1 #2"}},
	{name: "request bytes overrun by a total", send: cat(callBegin(1, 8192-64, "a"), callBegin(2, 8192-63, "b")), closed: "MaxRequestBytes is 16384"},
	{name: "request bytes overrun by an empty call", send: cat(callBegin(1, 8192-64, "a"), callBegin(2, 8192-64, "b"), callFrame(3, "")), closed: "MaxRequestBytes is 16384"},
	{name: "request bytes: the largest alone", send: cat(callBegin(1, 8192, "a"), abortFrame(1)), want: []string{notRun1}, cfg: limited(func(l *Limits) { l.MaxRequestBytes = 8192 })},
	{name: "request bytes: the largest not alone", send: cat(slowCall(2), callBegin(1, 8192, "a")), closed: "MaxRequestBytes is 8192", cfg: limited(func(l *Limits) { l.MaxRequestBytes = 8192 })},
	{name: "request bytes come back", send: cat(callBegin(1, 8192, "a"), abortFrame(1), callBegin(1, 8192, "a"), abortFrame(1), callBegin(1, 8192, "a"), abortFrame(1)), want: []string{notRun1, notRun1, notRun1}},
}

func TestAcceptorsView(t *testing.T) { runScripts(t, acceptorScripts) }
