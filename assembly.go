package plugwire

import "fmt"

// A segment is a run of bytes that arrived: in the buffer of a read that they
// filled well, or copied into a buffer of their own.
type segment struct {
	b     []byte
	owner *readBuffer // where b lies, if it is to be given back
	full  bool        // nothing may be appended to b
}

func (g *segment) release() {
	if g.owner != nil {
		readBuffers.Put(g.owner)
	}
	*g = segment{}
}

// give returns the reader's buffer to go with the last n bytes taken in from it, when
// they fill it so well that another buffer costs less than a copy; else nil.
func (rd *reader) give(n int) *readBuffer {
	if n < maxFrame/2 {
		return nil
	}
	full := rd.buf
	rd.buf = readBuffers.Get().(*readBuffer)
	rd.r, rd.w = 0, copy(rd.buf[:], full[rd.r:rd.w])
	return full
}

// assembly is a message that arrives in several frames. The reader only gathers
// the parts, for to put a large message together takes long: that is done on the
// goroutine that the message is for. What is held is in proportion to what has
// arrived: the total is a claim.
type assembly struct {
	parts []segment
	have  int
	total int // 0: none under way

	unwanted bool // only the sum is kept
}

// put takes in a part.
func (a *assembly) put(rd *reader, b []byte) {
	a.have += len(b)
	if a.unwanted {
		return
	}
	if owner := rd.give(len(b)); owner != nil {
		a.parts = append(a.parts, segment{b, owner, true})
		return
	}
	if n := len(a.parts); n > 0 && !a.parts[n-1].full && len(a.parts[n-1].b)+len(b) <= maxFrame {
		last := &a.parts[n-1]
		last.b = appendGrown(last.b, b, min(a.total-a.have, maxFrame-len(last.b)-len(b)))
		return
	}
	a.parts = append(a.parts, segment{b: append([]byte(nil), b...)})
}

// check reports what is wrong with a further frame, and whether it is the last.
func (a *assembly) check(h *FrameHeader, b []byte) (whole bool, err error) {
	return checkPart(h, a.have, a.total, len(b))
}

// checkPart reports what is wrong with a frame that has n bytes of a message, of
// which have of total have come before, and whether it is the last.
func checkPart(h *FrameHeader, have, total, n int) (whole bool, err error) {
	have += n
	more := h.Flags&FlagMore != 0
	switch {
	case n == 0:
		return false, errEmptyPart
	case have > total || more && have == total:
		return false, fmt.Errorf("plugwire: fragments of %v do not add up: they exceed the announced %d bytes", h.Type, total)
	case !more && have < total:
		return false, fmt.Errorf("plugwire: fragments of %v do not add up: they end at %d of %d bytes", h.Type, have, total)
	}
	return !more, nil
}

// join appends the message to dst and gives its parts back.
func (a *assembly) join(dst []byte) []byte {
	if need := len(dst) + a.have; need > cap(dst) {
		dst = append(make([]byte, 0, need), dst...)
	}
	for i := range a.parts {
		dst = append(dst, a.parts[i].b...)
	}
	a.drop()
	return dst
}

// discard gives up what has arrived and what is still to come: only the sum is kept.
func (a *assembly) discard() {
	have, total := a.have, a.total
	a.drop()
	a.have, a.total, a.unwanted = have, total, true
}

// drop gives the parts back.
func (a *assembly) drop() {
	for i := range a.parts {
		a.parts[i].release()
	}
	*a = assembly{}
}
