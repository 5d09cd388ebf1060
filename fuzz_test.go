package plugwire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"
)

func FuzzHello(f *testing.F) {
	entries, _ := readGolden(f)
	for _, e := range entries {
		if e.header.Type == FrameHello {
			f.Add(e.payload())
		}
	}
	f.Add(appendHello(nil, (*Config)(nil).withDefaults().hello()))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > maxHello {
			return
		}
		h, err := parseHello(b)
		if err != nil {
			return
		}
		again, err := parseHello(appendHello(nil, h))
		if err != nil || !reflect.DeepEqual(again, h) {
			t.Fatalf("%x\nmeans   %+v\nbecame  %+v, %v", b, h, again, err)
		}
		l := h.limits
		for _, n := range []int{l.frame, l.message, l.calls, l.oneWay, l.requestBytes, l.streamWindow} {
			if n < 0 || n > maxWireLen {
				t.Fatalf("limit %d", n)
			}
		}
		ours := (*Config)(nil).withDefaults().hello()
		ours.apps = []uint32{1, 2}
		a, err1 := negotiate(ours, h)
		b2, err2 := negotiate(h, ours)
		if a != b2 || (err1 == nil) != (err2 == nil) {
			t.Fatalf("the dialler finds %d %v, the listener %d %v", a, err1, b2, err2)
		}
	})
}

// A scriptReader makes frames of a fuzzer's bytes, most of them nearly legal:
// four bytes choose type, flags, code and id from what is likely to mean
// something, and the rest is payload.
type scriptReader struct{ b []byte }

func (s *scriptReader) byte() byte {
	if len(s.b) == 0 {
		return 0
	}
	c := s.b[0]
	s.b = s.b[1:]
	return c
}

func (s *scriptReader) take(n int) []byte {
	n = min(n, len(s.b))
	b := s.b[:n]
	s.b = s.b[n:]
	return b
}

var scriptFlags = map[FrameType][]FrameFlags{
	FrameMethods: {0, FlagMore},
	FrameCall:    {0, 0, bm, FlagMore, FlagDeadline, bm | FlagDeadline, FlagBegin, FlagMeta},
	FrameReply:   {FlagBack, FlagBack, FlagBack | bm, FlagBack | FlagMore, 0},
	FrameError:   {FlagBack, nr, 0},
	FrameNotify:  {0, 0, bm, FlagMore},
	FrameAbort:   {0, FlagBack},
	FrameCredit:  {0, 0, FlagBack},
	FrameOpen:    {0, 0, FlagDeadline, FlagBack, FlagMeta, FlagMeta | FlagBack},
	FrameData:    {0, 0, bm, FlagMore, FlagBack, FlagBack | bm, FlagBack | FlagMore, FlagMeta, bm | FlagMeta},
	FrameClose:   {0, FlagBack | FlagLast, FlagBack, FlagMeta},
	FrameReset:   {0, FlagBack | FlagLast, FlagBack, nr | FlagLast},
}

func (s *scriptReader) frame() []byte {
	typ := FrameType(s.byte())
	if typ < 0xf0 { // leave some as they are
		typ = FrameType(1 + int(typ)%(len(frameTypeNames)-1))
	}
	f := s.byte()
	flags := FrameFlags(f)
	if choices := scriptFlags[typ]; f < 0xf0 && len(choices) > 0 {
		flags = choices[int(f)%len(choices)]
	} else if f < 0xf0 {
		flags = 0
	}
	code := uint16(s.byte() % 10)
	id := uint32(s.byte())
	if id < 0xe0 {
		id %= 9
	} else if id == 0xff {
		id = 1<<32 - 1
	}
	switch typ {
	case FrameNotify:
		if id < 0xe0 {
			id = 0
		}
	case FrameGoAway:
		code = 1 + code%4
	}
	n := int(s.byte())
	if n >= 0xf0 { // a long one
		return frame(typ, flags, code, id, filler[:(n-0xef)*256])
	}
	payload := s.take(n % 32)
	if typ == FramePing || typ == FramePong {
		payload = append(payload[:len(payload):len(payload)], filler[:8]...)[:8]
	}
	var head []byte
	if flags&FlagBegin != 0 {
		head = append(head, s.byte(), s.byte()%33, 0, 0)
	}
	if typ == FrameCredit && id != 0 {
		payload = append(payload[:len(payload):len(payload)], 0, 0, 0, 0)[:4]
	}
	if flags&FlagDeadline != 0 {
		head = append(head, 0, 0, 0, s.byte(), s.byte(), 0, 0, 0)
	}
	if flags&FlagMeta != 0 {
		head = append(head, metaField("k", "v")...)
	}
	if typ == FrameOpen {
		payload = nil
	}
	if code == 0 && (typ == FrameOpen && flags&FlagBack == 0 || typ == FrameCall || typ == FrameNotify) {
		head = append(head, "\x04echo"...)
	}
	return frame(typ, flags, code, id, head, payload)
}

// fuzzMux are handlers of every temper.
func fuzzMux() *Mux {
	m := NewMux()
	m.Handle("echo", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) { return append(reply, r.Payload()...), nil }))
	m.Handle("slow", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		select {
		case <-r.Context().Done():
		case <-time.After(3 * time.Millisecond):
		}
		return reply, r.Context().Err()
	}))
	m.Handle("note", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) { return nil, nil }))
	m.Handle("back", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Millisecond)
		defer cancel()
		b, err := r.Conn().Call(ctx, "theirs", r.Payload())
		return append(reply, b...), err
	}))
	m.Handle("panic", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) { panic("as asked") }))
	m.HandleStream("stream", func(s *Stream) error { // 6
		for {
			b, err := s.Recv()
			if err == nil {
				err = s.Send(b)
			}
			if err != nil {
				return err
			}
		}
	})
	m.HandleStream("unread", func(s *Stream) error { // 7
		ctx, cancel := context.WithTimeout(s.Context(), 3*time.Millisecond)
		defer cancel()
		for s.send(ctx, make([]byte, 5000)) == nil {
		}
		return nil
	})
	m.HandleStream("back stream", func(s *Stream) error { // 8
		ctx, cancel := context.WithTimeout(s.Context(), 5*time.Millisecond)
		defer cancel()
		out, err := s.Info().Conn.OpenStream(ctx, "theirs")
		if err != nil {
			return err
		}
		go out.Send(make([]byte, 9000))
		_, err = out.Recv()
		return err
	})
	m.HandleStream("stream panic", func(s *Stream) error { panic("as asked") }) // 9
	return m
}

// FuzzConnScript sends a script of frames to a live connection, in pieces, and
// closes. Nothing may panic or hang, every call and the connection end, and
// another client of the same server is not harmed.
func FuzzConnScript(f *testing.F) {
	f.Add(false, byte(0), []byte{})
	f.Fuzz(func(t *testing.T, unix bool, chunk byte, script []byte) {
		if len(script) > 4096 {
			return
		}
		network := "pipe"
		if unix {
			network = "unix"
		}
		s := &Server{Mux: fuzzMux(), Config: &Config{CloseTimeout: 50 * time.Millisecond, Limits: streamLimits(nil).Limits}}
		defer s.Close()
		join := func() (net.Conn, <-chan error) {
			dialled, accepted := socketPair(t, network)
			served := make(chan error, 1)
			go func() { served <- s.ServeConn(context.Background(), accepted) }()
			dialled.SetDeadline(time.Now().Add(adversaryPatience))
			return dialled, served
		}
		nc, served := join()
		go io.Copy(io.Discard, nc)
		wire := helloBytes(withMetadata(streamHello()))
		for r := (scriptReader{script}); len(r.b) > 0; {
			wire = append(wire, r.frame()...)
		}
		step := 1 + 7*int(chunk)
		if chunk == 0 {
			step = len(wire)
		}
		for len(wire) > 0 {
			n := min(step, len(wire))
			if _, err := nc.Write(wire[:n]); err != nil {
				break
			}
			wire = wire[n:]
		}
		good, goodServed := join()
		ctx, cancel := context.WithTimeout(context.Background(), adversaryPatience)
		defer cancel()
		c, err := NewConn(ctx, good, nil)
		if err != nil {
			t.Fatalf("another client: %v", err)
		}
		good.SetDeadline(time.Time{})
		if b, err := c.Call(ctx, "echo", []byte("honest")); err != nil || string(b) != "honest" {
			t.Fatalf("another client's call: %q, %v", b, err)
		}
		c.Close()
		nc.Close()
		for _, ch := range []<-chan error{served, goodServed} {
			select {
			case err := <-ch:
				if err != nil && !errors.As(err, new(*Error)) {
					t.Fatalf("%T %v", err, err)
				}
			case <-ctx.Done():
				t.Fatal("a connection does not end")
			}
		}
	})
}

// An openingPeer is the other side of a handshake, within one goroutine: it says
// its opening, hears ours, and says what proof makes of that. Each read gives at
// most chunk bytes. After its last byte comes the end.
type openingPeer struct {
	net.Conn
	opening []byte
	proof   func(heard []byte) []byte // nil once asked
	chunk   int
	say     []byte
	heard   []byte
	ends    int // reads of the end
}

func (p *openingPeer) Write(b []byte) (int, error) {
	p.heard = append(p.heard, b...)
	return len(b), nil
}

func (p *openingPeer) Read(b []byte) (int, error) {
	if len(p.say) == 0 && p.opening != nil {
		p.say, p.opening = p.opening, nil
	}
	if len(p.say) == 0 && p.proof != nil {
		p.say, p.proof = p.proof(p.heard), nil
	}
	if len(p.say) == 0 {
		if p.ends++; p.ends > 10 {
			panic("reads on after the end")
		}
		return 0, io.EOF
	}
	n := copy(b, p.say[:min(p.chunk, len(p.say))])
	p.say = p.say[n:]
	return n, nil
}

func (p *openingPeer) SetDeadline(time.Time) error     { return nil }
func (p *openingPeer) SetReadDeadline(time.Time) error { return nil }

// altered returns right, changed where mask has bits, and the rest of mask.
func altered(right, mask []byte) (changed, rest []byte) {
	changed = bytes.Clone(right)
	n := min(len(right), len(mask))
	for i, c := range mask[:n] {
		changed[i] ^= c
	}
	return changed, mask[n:]
}

// FuzzProof is the other side of a handshake with a secret, in both roles. Either
// it says b behind its HELLO. Or, with alter, b says what is changed in the right
// PROOF, then in the HELLO before it, and then what follows. Nobody is accepted
// but by the right PROOF to what was said, and then nothing behind it was read.
func FuzzProof(f *testing.F) {
	key := newSecret()
	cfg := withSecret(key).withDefaults()
	f.Fuzz(func(t *testing.T, dials, alter bool, chunk byte, b []byte) {
		if len(b) > 2*maxHello {
			return
		}
		theirs := cfg.hello()
		theirs.sent = helloBytes(theirs)
		said := theirs.sent
		if alter {
			said, _ = altered(said, b[min(len(b), frameHeaderLen+proofLen):])
		}
		var right, proof []byte
		peer := &openingPeer{opening: said, chunk: 1 + int(chunk)}
		peer.proof = func(heard []byte) []byte {
			if !alter || len(heard) < len(wireMagic)+frameHeaderLen { // which nobody can answer to
				return b
			}
			ours := heard[:len(wireMagic)+frameHeaderLen+int(binary.LittleEndian.Uint32(heard[len(wireMagic):]))]
			role, hellos := roleListener, hashHellos(ours, theirs.sent)
			if !dials {
				role, hellos = roleDialler, hashHellos(theirs.sent, ours)
			}
			right = appendProof(nil, key.proof(role, hellos, nil))
			proof, b = altered(right, b)
			return append(proof[:len(proof):len(proof)], b[min(len(b), len(said)):]...)
		}
		_, _, _, err := handshake(peer, dials, cfg)
		// What a PROOF's header says beside length, type and flags means nothing.
		same := right != nil && bytes.Equal(said, theirs.sent) &&
			bytes.Equal(proof[:6], right[:6]) && bytes.Equal(proof[frameHeaderLen:], right[frameHeaderLen:])
		if (err == nil) != same {
			t.Fatalf("dials %v, the right PROOF %v: %v\nHELLO %x\nPROOF %x", dials, same, err, said, proof)
		}
		if behind := max(0, len(b)-len(said)); err == nil && len(peer.say) != behind {
			t.Fatalf("%d bytes are left of %d behind the PROOF", len(peer.say), behind)
		}
		if err != nil && strings.Contains(err.Error(), strings.TrimSpace(key.text())) {
			t.Fatal("the secret is told")
		}
	})
}
