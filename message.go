package plugwire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/plugwire/plugwire/internal/yield"
)

// message is something to send that may take several frames.
type message struct {
	kind     FrameType
	flags    FrameFlags // BACK, for what an acceptor sends
	code     uint16
	id       uint32
	name     string    // of the method, when code is 0 and the kind has one
	deadline time.Time // or zero
	meta     Metadata
	metaLen  int // of the META field, 0 without metadata
	payload  []byte
}

// setMeta gives the message metadata; the error says why it cannot have it.
func (m *message) setMeta(md Metadata) error {
	if len(md) == 0 {
		return nil
	}
	n, err := md.size()
	m.meta, m.metaLen = md, 2+n
	return err
}

// prefixLen is the size of the fields before the payload, but for BEGIN's total.
func (m *message) prefixLen() int {
	n := m.metaLen
	if !m.deadline.IsZero() {
		n += 8
	}
	if m.byName() {
		n += 1 + len(m.name)
	}
	return n
}

func (m *message) byName() bool {
	return m.code == 0 && (m.kind == FrameCall || m.kind == FrameNotify || m.kind == FrameOpen && m.flags&FlagBack == 0)
}

// size is the length of the message as one frame's payload.
func (m *message) size() int { return m.prefixLen() + len(m.payload) }

// status is the code of an ending: OK of a REPLY or a CLOSE without one.
func (m *message) status() Code {
	if m.kind == FrameReply {
		return OK
	}
	return Code(m.code)
}

// append appends the first frame of the message with the first n bytes of its
// payload: the only frame when that is all of it. The time left is computed here.
func (m *message) append(b []byte, n int) []byte {
	h := FrameHeader{Type: m.kind, Flags: m.flags, Code: m.code, ID: m.id, Length: uint32(m.prefixLen() + n)}
	part := n < len(m.payload)
	if part {
		h.Flags |= FlagBegin | FlagMore
		h.Length += 4
	}
	if !m.deadline.IsZero() {
		h.Flags |= FlagDeadline
	}
	if m.metaLen > 0 {
		h.Flags |= FlagMeta
	}
	b = appendHeader(b, h.Type, h.Flags, h.Code, h.ID, int(h.Length))
	if part {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(m.payload)))
	}
	if !m.deadline.IsZero() {
		b = binary.LittleEndian.AppendUint64(b, uint64(max(time.Until(m.deadline), 0)))
	}
	if m.metaLen > 0 {
		b = m.meta.append(b, m.metaLen-2)
	}
	if m.byName() {
		b = append(append(b, byte(len(m.name))), m.name...)
	}
	return append(b, m.payload[:n]...)
}

// errStopped is what sendFragments returns when stop said so.
var errStopped = errors.New("plugwire: stopped")

// sendFragments appends a message that does not fit one frame, waiting for room
// before each frame. It is called and returns with out's lock held, which it
// gives up to wait and to write. An error after the first frame leaves the
// message begun: the caller sends ABORT, where the kind has it.
func (c *Conn) sendFragments(ctx context.Context, m *message, stop func(begun bool) bool) (begun bool, err error) {
	done, served := ctx.Done(), c.callsServed
	for at := 0; at < len(m.payload); {
		step := c.limits.frame
		if at == 0 {
			step -= 4 + m.prefixLen()
		}
		step = min(step, len(m.payload)-at)
		if !c.out.HasRoom(step + frameHeaderLen) {
			if c.out.Eager() {
				c.flushLocked(ctx)
				if c.othersWait(m, served) { // whose messages are small and should not wait for a slice of the processor
					c.out.Unlock()
					yield.All()
					c.out.Lock()
				}
				continue
			}
			if err := c.out.WaitRoom(ctx, step+frameHeaderLen); err != nil {
				return at > 0, err
			}
		}
		select {
		case <-done:
			return at > 0, ctx.Err()
		default:
		}
		if stop(at > 0) {
			return at > 0, errStopped
		}
		b := c.out.Buffer()
		if at == 0 {
			b = m.append(b, step)
		} else {
			h := FrameHeader{Type: m.kind, Flags: m.flags & FlagBack, Code: m.code, ID: m.id, Length: uint32(step)}
			if at+step < len(m.payload) {
				h.Flags |= FlagMore
			}
			b = append(appendFrameHeader(b, h), m.payload[at:at+step]...)
		}
		c.out.Put(b)
		at += step
	}
	return true, nil
}

// othersWait reports whether others than the sender of m, which began when that
// many calls were served, use the connection.
func (c *Conn) othersWait(m *message, served uint64) bool {
	own := int64(0)
	if m.kind == FrameCall {
		own = 1
	}
	return c.expecting.Load() > own || c.callsServed != served
}

// flushLocked writes what is pending, waiting if need be; the lock is given up meanwhile.
func (c *Conn) flushLocked(ctx context.Context) {
	c.out.Unlock()
	c.out.FlushWaiting(ctx)
	c.out.Lock()
}

// prefix is what precedes the payload in a message's first frame.
type prefix struct {
	total   int // of a message in several frames, else 0
	left    time.Duration
	hasLeft bool
	meta    Metadata
	metaLen int // of the META field
	name    []byte
}

// parsePrefix reads the fields before the payload that h's flags announce.
func parsePrefix(h *FrameHeader, b []byte, maxMessage int) (p prefix, payload []byte, err error) {
	f := fieldReader{b: b}
	if h.Flags&FlagBegin != 0 {
		total := f.u32()
		switch {
		case h.Flags&FlagMore == 0:
			return p, nil, fmt.Errorf("plugwire: %v with BEGIN and without MORE", h.Type)
		case total == 0 || uint64(total) > uint64(maxMessage):
			return p, nil, fmt.Errorf("plugwire: %v announces a message of %d bytes, MaxMessage is %d", h.Type, total, maxMessage)
		}
		p.total = int(total)
	}
	if h.Flags&FlagDeadline != 0 {
		left := f.u64()
		if left > math.MaxInt64 {
			return p, nil, fmt.Errorf("plugwire: %v with a deadline out of range", h.Type)
		}
		p.left, p.hasLeft = time.Duration(left), true
	}
	if h.Flags&FlagMeta != 0 {
		before := len(f.b)
		if p.meta, err = f.metaField(); err != nil {
			return p, nil, err
		}
		p.metaLen = before - len(f.b)
	}
	if h.Code == 0 && (h.Type == FrameCall || h.Type == FrameNotify || h.Type == FrameOpen) {
		p.name = f.take(f.u8())
		if !f.bad && len(p.name) == 0 {
			return p, nil, fmt.Errorf("plugwire: %v by name without a name", h.Type)
		}
	}
	if f.bad {
		return p, nil, errTruncated
	}
	switch {
	case h.Type == FrameOpen && len(f.b) > 0:
		return p, nil, errors.New("plugwire: OPEN with a payload")
	case p.total > 0 && len(f.b) >= p.total:
		return p, nil, fmt.Errorf("plugwire: %v with BEGIN holds its whole message", h.Type)
	case len(f.b) > maxMessage:
		return p, nil, fmt.Errorf("plugwire: %v of %d bytes, MaxMessage is %d", h.Type, len(f.b), maxMessage)
	}
	return p, f.b, nil
}

// appendGrown appends b to dst, behind which more bytes are expected: capacity
// doubles, but not beyond what will be needed.
func appendGrown(dst, b []byte, more int) []byte {
	if need := len(dst) + len(b); need > cap(dst) {
		grown := make([]byte, len(dst), min(max(need, 2*cap(dst)), need+more))
		copy(grown, dst)
		dst = grown
	}
	return append(dst, b...)
}
