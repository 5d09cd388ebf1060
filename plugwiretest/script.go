package plugwiretest

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/plugwire/plugwire"
)

// Magic is what each side sends first (docs/PROTOCOL.md, section 5).
const Magic = "\xd7PW\x01"

// scriptTimeout is how long a Script waits for the other side.
const scriptTimeout = 10 * time.Second

// A Script is a peer that says what a test has it say, right or wrong, in frames
// (docs/PROTOCOL.md). The first thing that does not go as the script has it fails
// the test, and every method then does nothing, so that results need no check
// before the end. It belongs to one goroutine, which may be any.
type Script struct {
	t  testing.TB
	nc net.Conn
	r  *plugwire.FrameReader
	w  *plugwire.FrameWriter
	ok bool
}

// NewScript returns a Script at this end of nc, which is closed with the test. At
// the other end may be a plugwire.NewConn or a Server's ServeConn.
func NewScript(t testing.TB, nc net.Conn) *Script {
	t.Cleanup(func() { nc.Close() })
	return &Script{t, nc, plugwire.NewFrameReader(nc, 64<<10), plugwire.NewFrameWriter(nc), true}
}

// Scripted returns a connection, with the Config cfg, whose other side plays the
// script on a goroutine, behind the handshake. It is closed with the test, which
// does not end before the script.
func Scripted(t testing.TB, cfg *plugwire.Config, script func(*Script)) *plugwire.Conn {
	t.Helper()
	ours, theirs := NetPair(t)
	s := NewScript(t, theirs)
	played := make(chan struct{})
	t.Cleanup(func() { <-played })
	go func() {
		defer close(played)
		if s.Greet(); s.ok {
			script(s)
		}
	}()
	c, err := plugwire.NewConn(context.Background(), ours, cfg)
	if err != nil {
		t.Fatalf("plugwiretest: handshake: %v", err)
	}
	t.Cleanup(func() { c.Close(); <-c.Done() })
	return c
}

// OK reports whether everything has gone as the script has it.
func (s *Script) OK() bool { return s.ok }

func (s *Script) failed(doing string, err error) {
	s.t.Errorf("plugwiretest: script: %s: %v", doing, err)
	s.ok = false
}

// Greet runs the handshake, in either role: it sends Magic and a HELLO, and reads
// the other side's.
func (s *Script) Greet() {
	if !s.ok {
		return
	}
	// Whoever dials says it first, and over a net.Pipe is not heard before the other listens.
	sent := make(chan error, 1)
	s.nc.SetDeadline(time.Now().Add(scriptTimeout))
	go func() {
		err := s.w.WriteFrame(plugwire.FrameHeader{Type: plugwire.FrameHello}, Hello())
		if err == nil {
			_, err = io.WriteString(s.nc, Magic)
		}
		if err == nil {
			err = s.w.Flush()
		}
		sent <- err
	}()
	var magic [len(Magic)]byte
	_, err := io.ReadFull(s.nc, magic[:])
	if err == nil && string(magic[:]) != Magic {
		err = errors.New("wrong magic: " + string(magic[:]))
	}
	if err == nil {
		var h plugwire.FrameHeader
		if h, _, err = s.r.ReadFrame(); err == nil && h.Type != plugwire.FrameHello {
			err = errors.New(h.Type.String() + " in place of HELLO")
		}
	}
	if err := errors.Join(<-sent, err); err != nil {
		s.failed("handshake", err)
	}
}

// Hello returns the payload of the HELLO that Greet sends: with the defaults of
// plugwire.Limits, and the features "streams" and "metadata".
func Hello() []byte {
	field := func(b []byte, tag uint16, value []byte) []byte {
		b = binary.LittleEndian.AppendUint16(b, tag)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
		return append(b, value...)
	}
	var limits []byte // frame, message, calls, one-way window, requests, stream window
	for _, n := range []uint32{64 << 10, 64 << 20, 16384, 4 << 20, 128 << 20, 1 << 20} {
		limits = binary.LittleEndian.AppendUint32(limits, n)
	}
	b := field(nil, 1, []byte{1, 0}) // version of the wire
	b = field(b, 2, []byte("streams"))
	b = field(b, 2, []byte("metadata"))
	b = field(b, 4, limits)
	b = field(b, 5, []byte("plugwiretest/1"))
	return field(b, 6, make([]byte, 32)) // nonce, which matters where a secret is shared
}

// Send sends a frame, right or wrong, with Length set to the payload's.
func (s *Script) Send(h plugwire.FrameHeader, payload []byte) {
	if !s.ok {
		return
	}
	s.nc.SetWriteDeadline(time.Now().Add(scriptTimeout))
	err := s.w.WriteFrame(h, payload)
	if err == nil {
		err = s.w.Flush()
	}
	if err != nil {
		s.failed("sending "+h.Type.String(), err)
	}
}

// SendBytes sends what need not be a frame, or not all of one.
func (s *Script) SendBytes(b []byte) {
	if !s.ok {
		return
	}
	s.nc.SetWriteDeadline(time.Now().Add(scriptTimeout))
	if _, err := s.nc.Write(b); err != nil {
		s.failed("sending bytes", err)
	}
}

// chatter are the types that a peer may send at any time.
var chatter = []plugwire.FrameType{plugwire.FrameMethods, plugwire.FrameCredit, plugwire.FramePing, plugwire.FramePong}

// Expect returns the next frame, which must be of one of the types; METHODS,
// CREDIT, PING and PONG are skipped when not among them. The payload is valid
// until the next Expect.
func (s *Script) Expect(types ...plugwire.FrameType) (plugwire.FrameHeader, []byte) {
	s.nc.SetReadDeadline(time.Now().Add(scriptTimeout))
	for s.ok {
		h, b, err := s.r.ReadFrame()
		switch {
		case err != nil:
			s.failed("waiting for "+names(types), err)
		case slices.Contains(types, h.Type):
			return h, b
		case !slices.Contains(chatter, h.Type):
			s.failed("waiting for "+names(types), errors.New("it was "+h.Type.String()))
		}
	}
	return plugwire.FrameHeader{}, nil
}

// names joins the types with "or".
func names(types []plugwire.FrameType) (s string) {
	for i, t := range types {
		if i > 0 {
			s += " or "
		}
		s += t.String()
	}
	return s
}

// ExpectEnd waits until the other side has closed the connection, skipping
// whatever it still sends, and returns the reason that it gave: the text of
// GOAWAY failed, or "".
func (s *Script) ExpectEnd() (reason string) {
	s.nc.SetReadDeadline(time.Now().Add(scriptTimeout))
	for s.ok {
		h, b, err := s.r.ReadFrame()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			s.failed("waiting for the end", err)
		case err != nil:
			return reason
		case h.Type == plugwire.FrameGoAway && h.Code == 4 && len(b) >= 2:
			reason = string(b[2:])
		}
	}
	return ""
}

// Close closes the script's end, without a word.
func (s *Script) Close() { s.nc.Close() }
