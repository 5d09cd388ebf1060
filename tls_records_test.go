//go:build !plugwire_notls

package plugwire

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// What a TLS 1.3 record (RFC 8446, 5.2) carries at most, and has beside that:
// header, type of the content, and a tag, of the same length in all ciphers.
const (
	mostOfRecord = 16 << 10
	besideRecord = recordHeaderLen + 1 + 16
)

// A recordMeter looks at each batch on its way to crypto/tls and at the records
// that come of it. The writer makes one write of them unless the socket is full.
type recordMeter struct {
	*tlsConn
	t *testing.T

	mu                       sync.Mutex
	batches, frames, records int
	plain                    int // bytes
}

func (m *recordMeter) seal(dst, plain []byte) ([]byte, error) {
	sealed, err := m.tlsConn.seal(dst, plain)
	if err != nil {
		return sealed, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.batches++
	m.plain += len(plain)
	rest := sealed
	for left := len(plain); left > 0; m.records++ {
		n := min(left, mostOfRecord)
		left -= n
		if len(rest) < n+besideRecord || rest[0] != 23 || binary.BigEndian.Uint16(rest[1:]) != tls.VersionTLS12 ||
			int(binary.BigEndian.Uint16(rest[3:])) != n+besideRecord-recordHeaderLen {
			m.t.Errorf("of a batch of %d bytes %d are left, for a record of %d there is %x", len(plain), left+n, n, rest[:min(len(rest), recordHeaderLen)])
			return sealed, errors.New("records are not as they should be")
		}
		rest = rest[n+besideRecord:]
	}
	if len(rest) > 0 {
		m.t.Errorf("%d bytes behind the records of a batch of %d", len(rest), len(plain))
	}
	for r := NewFrameReader(bytes.NewReader(plain), maxFrame); ; m.frames++ {
		if _, _, err := r.ReadFrame(); err != nil {
			if err != io.EOF {
				m.t.Errorf("a batch is not of whole frames: %v", err)
			}
			return sealed, nil
		}
	}
}

// report logs what was counted since the last time.
func (m *recordMeter) report(what string, c *Conn, writes *uint64) (batches, records int) {
	now := c.Stats().Writes
	m.mu.Lock()
	defer m.mu.Unlock()
	m.t.Logf("%s: %d frames of %d bytes in %d batches, %d records, %d writes: %.1f frames and %.2f records per batch",
		what, m.frames, m.plain, m.batches, m.records, now-*writes, float64(m.frames)/float64(m.batches), float64(m.records)/float64(m.batches))
	batches, records = m.batches, m.records
	m.batches, m.frames, m.records, m.plain, *writes = 0, 0, 0, 0, now
	return batches, records
}

// metered opens a side of a connection as open does, with a meter in it.
func metered(t *testing.T, nc net.Conn, dialler bool, cfg *Config) (c *Conn, m *recordMeter, took time.Duration) {
	cfg = cfg.withDefaults()
	peer, err := authorize(nc, dialler, cfg)
	if err != nil {
		t.Error(err)
		return
	}
	start := time.Now()
	secured, err := cfg.secure(background, nc, dialler, "", peer)
	took = time.Since(start)
	if err != nil {
		t.Error(err)
		return
	}
	secured, theirs, app, err := handshake(secured, dialler, cfg)
	if err != nil {
		t.Error(err)
		return
	}
	m = &recordMeter{tlsConn: secured.(*tlsConn), t: t}
	c = newConn(m, peer, theirs, app, cfg)
	c.start()
	return c, m, took
}

// A batch becomes as few records as it can, from the first one on: of up to 16
// KiB one. So 64 callers share records as they share writes.
func TestBatchesBecomeFewRecords(t *testing.T) {
	watchdog(t)
	mux := echoMux(nil)
	mux.Handle("note", HandlerFunc(func(_ *Request, reply []byte) ([]byte, error) { return reply, nil }))
	var times []time.Duration
	join := func() (x, y *Conn, mx, my *recordMeter) {
		dialled, accepted := netPair(t, "tcp", nil)
		done := make(chan struct{})
		go func() {
			y, my, _ = metered(t, accepted, false, withTestTLS(serves(mux)))
			close(done)
		}()
		x, mx, took := metered(t, dialled, true, withTestTLS(nil))
		<-done
		if x == nil || y == nil {
			t.FailNow()
		}
		times = append(times, took)
		t.Cleanup(func() { closeBoth(x, y) })
		return x, y, mx, my
	}
	for range 20 {
		x, y, _, _ := join()
		closeBoth(x, y)
	}
	slices.Sort(times)
	t.Logf("TLS handshake, both sides in this process: median %v, slowest %v", times[len(times)/2], times[len(times)-1])

	x, y, mx, my := join()
	if _, err := x.Call(background, "check", sealed(60<<10, 1)); err != nil { // a large batch at once
		t.Error(err)
	}
	var wx, wy uint64
	mx.report("the first call of 60 KiB", x, &wx)
	my.report("its reply", y, &wy)
	var wg sync.WaitGroup
	const callers, calls = 64, 200
	for i := range callers {
		wg.Go(func() {
			for j := range calls {
				if err := checkCall(background, x, 64, uint64(i*calls+j)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, side := range []struct {
		what string
		m    *recordMeter
		c    *Conn
		w    *uint64
	}{{"64 callers, 64 B", mx, x, &wx}, {"their replies", my, y, &wy}} {
		batches, records := side.m.report(side.what, side.c, side.w)
		if records != batches { // 64 calls fit one
			t.Errorf("%s: %d records for %d batches", side.what, records, batches)
		}
	}
	for i := range 200 {
		if err := x.Notify(background, "note", fill(64<<10, uint64(i))); err != nil {
			t.Error(err)
		}
	}
	if err := x.Flush(background); err != nil {
		t.Error(err)
	}
	mx.report("one-way messages of 64 KiB", x, &wx)
}
