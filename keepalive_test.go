package plugwire

import (
	"strings"
	"testing"
	"time"
)

// A peer that is silent is given up at its time; one that answers, or sends
// anything else, is not.
func TestKeepAlive(t *testing.T) {
	const idle = 60 * time.Millisecond
	cfg := &Config{KeepAlive: idle}
	eachWay(t, func(t *testing.T, w way) {
		t.Parallel()
		a := meet(t, w, cfg, nil)
		start := time.Now()
		h, _ := a.next(FramePing)
		if d := time.Since(start); d < idle*9/10 || h.Length != 8 {
			t.Errorf("PING after %v", d)
		}
		a.ended("no sign of life")
		if d := time.Since(start); d < (idle+idle/3)*9/10 || CodeOf(a.c.Err()) != Unavailable {
			t.Errorf("given up after %v: %v", d, a.c.Err())
		}
	})
	eachWay(t, func(t *testing.T, w way) {
		t.Parallel()
		a := meet(t, w, cfg, nil)
		_, b := a.next(FramePing)
		a.send(frame(FramePong, 0, 0, 0, b))
		a.next(FramePing) // another, after as long again
		a.send(frame(FrameCredit, 0, 0, 0))
		a.next(FramePing)
		a.send(frame(0x80, 0, 0, 0))
		if err := a.c.Err(); err != nil {
			t.Error(err)
		}
	})
}

func TestKeepAliveDefaults(t *testing.T) {
	for _, transport := range testTransports {
		ours, theirs := netPair(t, transport, nil)
		for set, want := range map[time.Duration]time.Duration{
			0: map[string]time.Duration{"tcp": defaultKeepAlive}[transport], -1: 0, time.Second: time.Second,
		} {
			if got := keepAliveOf(ours, &Config{KeepAlive: set}); got != want {
				t.Errorf("%s: %v set, got %v, want %v", transport, set, got, want)
			}
		}
		ours.Close()
		theirs.Close()
	}
}

func TestKeepAliveBetweenTwo(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		t.Parallel()
		x, y := pair(t, transport, &Config{KeepAlive: 150 * time.Millisecond}, serves(echoMux(nil)))
		before := y.Stats().Reads
		until(t, "PING and answer, twice", func() bool { return y.Stats().Reads >= before+2 })
		if err := checkCall(background, x, 10, 1); err != nil || x.Err() != nil || y.Err() != nil {
			t.Error(err, x.Err(), y.Err())
		}
		x.Close()
		if !strings.Contains(x.Err().Error(), "closed") {
			t.Error(x.Err())
		}
	})
}
