package plugwire

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
)

// Bounds of a method table on the wire.
const (
	maxMethods    = 4096
	maxMethodName = 255
)

// peerMethods is what the other side serves, as far as it has said. It is
// immutable once callers can see it.
type peerMethods struct {
	byName   map[string]*peerMethod
	numbers  map[uint16]struct{} // those in byName
	names    []string            // in the order announced
	fallback bool                // names that are not listed may be called by name
}

// appendMethods appends METHODS frames that list t's methods, with payloads of
// at most limit bytes. There is always at least one frame.
func appendMethods(dst []byte, t *muxTable, limit int) []byte {
	start := len(dst)
	dst = appendFrameHeader(dst, FrameHeader{Type: FrameMethods})
	entry := func(number uint16, name string) {
		if len(dst)-start-frameHeaderLen+3+len(name) > limit {
			dst[start+5] = byte(FlagMore)
			setFrameLength(dst, start)
			start = len(dst)
			dst = appendFrameHeader(dst, FrameHeader{Type: FrameMethods})
		}
		dst = binary.LittleEndian.AppendUint16(dst, number)
		dst = append(append(dst, byte(len(name))), name...)
	}
	if t.fallback != nil {
		entry(0, "")
	}
	for _, m := range t.methods {
		entry(m.number, m.name)
	}
	setFrameLength(dst, start)
	return dst
}

// setFrameLength fills in the length of the frame that starts at dst[start:] and ends with dst.
func setFrameLength(dst []byte, start int) {
	binary.LittleEndian.PutUint32(dst[start:], uint32(len(dst)-start-frameHeaderLen))
}

// peerMethod is one of them.
type peerMethod struct {
	name   string
	number uint16
	called atomic.Pointer[peerMethod] // the same, with the caller's string for its name
}

// says reports whether every entry of a METHODS payload is in p already. A table
// that is sent again and again then costs no copy of what is known.
func (p *peerMethods) says(b []byte) bool {
	f := fieldReader{b: b}
	for len(f.b) > 0 {
		number := f.u16()
		name := f.take(f.u8())
		if f.bad || number == 0 && (len(name) > 0 || !p.fallback) {
			return false
		}
		if old := p.byName[string(name)]; number != 0 && (old == nil || old.number != uint16(number)) {
			return false
		}
	}
	return true
}

// parse adds the entries of one METHODS payload to p.
func (p *peerMethods) parse(b []byte) error {
	f := fieldReader{b: b}
	for len(f.b) > 0 {
		number := f.u16()
		name := string(f.take(f.u8()))
		switch {
		case f.bad:
			return errTruncated
		case number == 0 && name == "":
			p.fallback = true
			continue
		case number == 0 || name == "":
			return fmt.Errorf("plugwire: method table entry %d %q", number, name)
		}
		if old, ok := p.byName[name]; ok {
			if old.number != uint16(number) {
				return fmt.Errorf("plugwire: method %q renumbered from %d to %d", name, old.number, number)
			}
			continue
		}
		if len(p.names) == maxMethods {
			return fmt.Errorf("plugwire: more than %d methods", maxMethods)
		}
		if _, taken := p.numbers[uint16(number)]; taken {
			return fmt.Errorf("plugwire: method number %d is now %q, and was another before", number, name)
		}
		p.byName[name] = &peerMethod{name: name, number: uint16(number)}
		p.numbers[uint16(number)] = struct{}{}
		p.names = append(p.names, name)
	}
	return nil
}

// announceMethods sends the Mux's table, at first or again after a change.
func (c *Conn) announceMethods() {
	c.out.Lock()
	c.announce = true
	c.out.Signal()
	c.out.Unlock()
	c.out.Flush()
}

// readMethods takes in a METHODS frame. The reader calls it.
func (c *Conn) readMethods(h *FrameHeader, b []byte) error {
	p := c.methodsComing
	if p == nil {
		if old := c.theirs.Load(); old == nil {
			p = &peerMethods{byName: make(map[string]*peerMethod), numbers: make(map[uint16]struct{})}
		} else if old.says(b) {
			return nil // whether or not more of the table follows
		} else {
			p = &peerMethods{byName: maps.Clone(old.byName), numbers: maps.Clone(old.numbers),
				names: slices.Clone(old.names), fallback: old.fallback}
		}
		c.methodsComing = p
	}
	if err := p.parse(b); err != nil {
		return err
	}
	if h.Flags&FlagMore == 0 {
		c.methodsComing = nil
		c.theirs.Store(p)
	}
	return nil
}

// Methods returns the names of the methods that the other side serves, as far
// as it has announced them.
func (c *Conn) Methods() []string {
	if p := c.theirs.Load(); p != nil {
		return slices.Clone(p.names)
	}
	return nil
}

// methodNumber finds the number to call a method by. 0 means by name: the
// other side's table is still on its way, or it has a fallback.
func (c *Conn) methodNumber(name string) (uint16, error) {
	if m := c.recent.Load(); m != nil && m.name == name {
		return m.number, nil
	}
	return c.findMethod(name)
}

// findMethod is methodNumber for another method than the last one. The string by
// which a method is called first is kept, for the same string is likely to come
// again, and then its bytes are not compared.
func (c *Conn) findMethod(name string) (uint16, error) {
	if p := c.theirs.Load(); p != nil {
		if m := p.byName[name]; m != nil {
			called := m.called.Load()
			if called == nil {
				called = &peerMethod{name: name, number: m.number}
				m.called.Store(called)
			}
			c.recent.Store(called)
			return m.number, nil
		}
		if !p.fallback {
			return 0, &Error{Code: Unimplemented, Op: "call", Addr: name, Message: "the other side has no such method", notRun: true}
		}
	}
	if name == "" || len(name) > maxMethodName {
		return 0, &Error{Code: InvalidArgument, Op: "call", Addr: name, Message: "a method name has 1 to 255 bytes", notRun: true}
	}
	return 0, nil
}
