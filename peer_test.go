package plugwire

import (
	"net"
	"sync"
	"testing"
	"time"
)

// gatedConn reads only while its lock is free. It hides what else the
// connection has, so that each read passes here.
type gatedConn struct {
	net.Conn
	mu sync.Mutex
}

func (g *gatedConn) Read(b []byte) (int, error) {
	g.mu.Lock()
	//lint:ignore SA2001 the lock is a gate: it is not held while reading
	g.mu.Unlock()
	return g.Conn.Read(b)
}

// A scriptedPeer is the other side of a connection, played by the test frame by
// frame after a proper handshake.
type scriptedPeer struct {
	t  testing.TB
	nc net.Conn
	fr *FrameReader
}

// scripted returns a connection whose other side is played by the test. That
// side announces no methods until it is told to, so calls go by name.
func scripted(t testing.TB, transport string, cfg *Config) (*Conn, *scriptedPeer) {
	t.Helper()
	nc, accepted := netPair(t, transport, cfg)
	p := &scriptedPeer{t: t, nc: nc}
	opened := make(chan *Conn, 1)
	go func() {
		c, err := open(background, accepted, false, "", testConfig(cfg).withDefaults())
		if err != nil {
			t.Error(err)
		}
		opened <- c
	}()
	nc, err := testConfig(cfg).secure(background, nc, true, "", new(Peer))
	if err != nil {
		t.Fatal(err)
	}
	p.nc = nc
	b := append([]byte(nil), wireMagic...)
	b = appendFrameHeader(b, FrameHeader{Type: FrameHello})
	b = appendHello(b, testConfig(serves(emptyMux)).withDefaults().hello())
	setFrameLength(b, len(wireMagic))
	p.send(b)
	if _, _, err := readHello(nc); err != nil {
		t.Fatal(err)
	}
	p.fr = NewFrameReader(nc, maxFrame)
	c := <-opened
	if c == nil {
		t.FailNow()
	}
	t.Cleanup(func() {
		nc.Close()
		closeBoth(c)
	})
	return c, p
}

// send writes bytes.
func (p *scriptedPeer) send(b []byte) {
	p.t.Helper()
	p.nc.SetWriteDeadline(time.Now().Add(20 * time.Second))
	if _, err := p.nc.Write(b); err != nil {
		p.t.Errorf("script: %v", err)
	}
}

// sendFrame writes one frame.
func (p *scriptedPeer) sendFrame(h FrameHeader, payload []byte) {
	p.t.Helper()
	h.Length = uint32(len(payload))
	p.send(append(appendFrameHeader(nil, h), payload...))
}

// expect reads up to a frame of the given type, skipping others.
func (p *scriptedPeer) expect(kind FrameType) (FrameHeader, []byte) {
	p.t.Helper()
	p.nc.SetReadDeadline(time.Now().Add(20 * time.Second))
	for {
		h, b, err := p.fr.ReadFrame()
		if err != nil {
			p.t.Fatalf("script: waiting for %v: %v", kind, err)
		}
		if h.Type == kind {
			return h, b
		}
	}
}
