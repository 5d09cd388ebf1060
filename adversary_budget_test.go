package plugwire

import (
	"context"
	"sync"
	"testing"
	"time"
)

// What the connections of a Server hold together: Limits.MaxServerBytes.

const full = "ERROR BACK|NOTRUN 8 #" // and the slot

// The state "refused" of section 7.5 of docs/PROTOCOL.md: budgetTaken bytes of
// the Server's 8192 are taken by another connection.
const budgetTaken = 4000

var budgetScripts = []script{
	{name: "fits", send: cat(callBegin(1, 4192, filler[:4000]), callPart(FlagMore, 1, filler[:191]), abortFrame(1)), want: []string{notRun1}},
	{name: "refused at its beginning", send: callBegin(1, 4193, "a"), want: []string{full + "1"}},
	{name: "refused drops the rest", send: cat(callBegin(1, 4193, "a"), callPart(FlagMore, 1, filler[:4000]), callPart(0, 1, filler[:192]), callFrame(1, "abcdefgh")), want: []string{full + "1", replyAll}},
	{name: "refused and aborted", send: cat(callBegin(1, 4193, "a"), abortFrame(1), callFrame(1, "abcdefgh")), want: []string{full + "1", replyAll}},
	{name: "refused and aborted twice", send: cat(callBegin(1, 4193, "a"), abortFrame(1), abortFrame(1)), closed: "ABORT"},
	{name: "refused and cancelled", send: cat(callBegin(1, 4193, "a"), cancelFrame(1), callPart(FlagMore, 1, "a"), cancelFrame(1), abortFrame(1)), want: []string{full + "1"}},
	{name: "refused and begun again", send: cat(callBegin(1, 4193, "a"), callBegin(1, 8, "a")), closed: "BEGIN"},
	{name: "refused sum passes the total", send: cat(callBegin(1, 4193, "a"), callPart(FlagMore, 1, filler[:4096]), callPart(FlagMore, 1, filler[:97])), closed: "announced 4193 bytes"},
	{name: "refused sum below the total", send: cat(callBegin(1, 4193, "a"), callPart(0, 1, "a")), closed: "end at 2 of 4193"},
	{name: "refused in the middle", send: cat(callBegin(1, 4000, filler[:3000]), callBegin(2, 1100, filler[:1090]), callPart(FlagMore, 1, filler[:200]), callPart(FlagMore, 1, "x"), callPart(0, 2, filler[:10])),
		want: []string{full + "1", `REPLY BACK 0 #2 "xxxxxxxxxxxxxxxxxxxx"`}},
	{name: "refused gives its bytes back", send: cat(callBegin(1, 4193, "a"), callBegin(2, 4100, filler[:4000]), callPart(FlagMore, 1, "a"), abortFrame(2), callBegin(3, 4100, "a"), abortFrame(3)),
		want: []string{full + "1", "ERROR BACK|NOTRUN 1 #2", "ERROR BACK|NOTRUN 1 #3"}},
	{name: "one frame", send: frame(FrameCall, 0, mSlow, 1, filler[:4193]), want: []string{full + "1"}},
	{name: "small ones are not counted", send: cat(callBegin(1, 4192, filler[:4090]), callFrame(2, "abcdefgh"), abortFrame(1)), want: []string{notRun1, `REPLY BACK 0 #2 "abcdefgh"`}},
	{name: "one-way message", send: cat(frame(FrameNotify, bm, mNote, 0, uint32(8000), filler[:4000]), frame(FrameNotify, FlagMore, 0, 0, filler[:193])), closed: "MaxServerBytes"},
	{name: "one-way message that fits", send: cat(frame(FrameNotify, bm, mNote, 0, uint32(4192), filler[:4000]), frame(FrameNotify, 0, 0, 0, filler[:192]))},
	{name: "one-way message that is aborted", send: cat(frame(FrameNotify, bm, mNote, 0, uint32(8000), filler[:4000]), abortFrame(0), callBegin(1, 4192, "x"), abortFrame(1)), want: []string{notRun1}},
	{name: "one-way message for nobody", send: cat(frame(FrameNotify, bm, 0, 0, uint32(8000), uint8(1), "x", filler[:4000]), frame(FrameNotify, FlagMore, 0, 0, filler[:3999]))},
}

func TestT16RequestsBeyondTheServersBudgetAreRefused(t *testing.T) {
	for _, row := range budgetScripts {
		t.Run(row.name, func(t *testing.T) {
			watchdog(t)
			cfg := limited(func(l *Limits) { l.MaxServerBytes, l.MaxFrame, l.OneWayWindow = 8192, 8192, 64<<10 })
			a := meet(t, way{"unix", true}, cfg, nil)
			b := a.c.cfg.budget
			if !b.take(budgetTaken) {
				t.Fatal("no room")
			}
			if row.name == "one frame" { // one that runs on the reader's goroutine takes no memory
				a.c.placementOf(a.c.mux.table.Load().methods[mSlow-1]).workerRuns = 1
			}
			a.send(row.send)
			if row.closed != "" {
				a.closed(row.closed)
			} else {
				a.alive(row.want...)
			}
			a.letGo()
			until(t, "the bytes to be given back", func() bool { return b.used.Load() == budgetTaken })
		})
	}
}

// Large stream messages count too.
func TestT16LargeStreamMessagesCount(t *testing.T) {
	watchdog(t)
	cfg := streamLimits(func(l *Limits) { l.MaxServerBytes, l.StreamWindow = 8192, 4096 })
	a := meetStreams(t, way{"unix", true}, cfg, nil)
	b := a.c.cfg.budget
	a.send(cat(openFrame(sHold, 1), dataBegin(1, 8000, filler[:4000])))
	until(t, "what has arrived to be counted", func() bool { return b.used.Load() == 4000 })
	a.send(callBegin(2, 4193, "a")) // the other way round too
	if h, p := a.next(FrameError); Code(h.Code) != ResourceExhausted {
		t.Errorf("%s", describe(h, p))
	}
	a.send(abortFrame(2))
	b.take(194)
	a.send(dataPart(FlagMore, 1, filler[:3999]))
	a.closed("MaxServerBytes")
	until(t, "the bytes to be given back", func() bool { return b.used.Load() == 194 })
}

// A crowd of honest clients whose large messages do not fit together: what was
// refused has not run, everything else arrives, and nothing stays counted.
func TestT16HonestClientsShareTheServersBudget(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		var k sync.Map
		m := echoMux(nil)
		m.HandleFunc("once", func(_ context.Context, b []byte) ([]byte, error) {
			seed, err := unseal(b)
			if _, again := k.LoadOrStore(seed, true); again || err != nil {
				t.Errorf("request %d: %v, again %v", seed, err, again)
			}
			time.Sleep(time.Millisecond)
			return nil, nil
		})
		m.HandleStream("drain", func(s *Stream) error {
			for {
				if _, err := s.Recv(); err != nil {
					return nil
				}
			}
		})
		s, addr, _ := served(t, transport, m, &Config{Limits: Limits{MaxMessage: 1 << 20, MaxServerBytes: 2 << 20, StreamWindow: 64 << 10}})
		var wg sync.WaitGroup
		var conns []*Conn
		refused, rounds := make([]int, 6), scaled(60)
		if transport == "pipe" { // which is slow
			rounds = 6
		}
		for i := range refused {
			c := dial(t, addr, nil)
			conns = append(conns, c)
			wg.Go(func() {
				for j := range rounds {
					seed := uint64(1000*i + j)
					_, err := c.Call(background, "once", sealed(100<<10+(i*j*7919)%(900<<10), seed))
					if _, ran := k.Load(seed); ran != (err == nil) {
						t.Errorf("request %d: %v, and ran: %v", seed, err, ran)
					}
					if err != nil {
						wantCode(t, err, ResourceExhausted, true)
						refused[i]++
					}
					if err := checkCall(background, c, 1000, seed); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		t.Logf("refused of each connection: %v", refused)
		accounts(t, conns...)
		until(t, "the bytes to be given back", func() bool { return s.cfg.budget.used.Load() == 0 })
		x := conns[0]
		st, err := x.OpenStream(background, "drain")
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			if err := st.Send(sealed(1<<20, 7)); err != nil {
				t.Error(err)
			}
			if err := x.Notify(background, "check", sealed(1<<20, 7)); err != nil {
				t.Error(err)
			}
		}
		st.Close()
		if err := x.Flush(background); err != nil {
			t.Error(err)
		}
		accounts(t, x)
		until(t, "the bytes of one-way and stream messages", func() bool { return s.cfg.budget.used.Load() == 0 })
	})
}
