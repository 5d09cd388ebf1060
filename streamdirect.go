package plugwire

import "github.com/plugwire/plugwire/internal/sockio"

// directLeast is the smallest message that is worth a place of its own.
const directLeast = 16 << 10

// A directInput is where the next message of a stream is read to by the
// goroutine that receives it and that reads the connection itself: it lies in the
// slice that the message is appended to, which saves a copy. That it is as long as
// the last one is a guess. When that is wrong, or the rest is long in coming,
// everything goes on in the reader's buffer as if it had been read there.
type directInput struct {
	s      *Stream
	header [frameHeaderLen]byte
	to     []byte // as long as the message is expected to be
	have   int    // bytes that were read, the header's among them
	done   bool   // the message is there
	two    sockio.Two
}

// direct returns where the message that is to be appended to dst may be read to,
// or nil.
func (s *Stream) direct(dst []byte) *directInput {
	in := &s.in
	if !sockio.TwoAvailable || in.expect == 0 || cap(dst)-len(dst) < in.expect || in.partLen > 0 || s.conn.raw == nil || s.conn.sealer != nil {
		return nil
	}
	if in.place == nil {
		in.place = &directInput{s: s}
	}
	d := in.place
	d.to, d.have, d.done = dst[len(dst):len(dst)+in.expect], 0, false
	return d
}

// fillDirect is fill for who waits for d, which may be nil. The role is borrowed.
func (rd *reader) fillDirect(d *directInput) error {
	c := rd.c
	if d == nil || rd.w > rd.r || d.s.in.total > 0 || c.ended.Load() || c.life.theyAreDone {
		return rd.fill()
	}
	rd.r, rd.w = 0, 0
	d.have = 0 // of an attempt before, in which the role went to somebody else
	rd.direct = d
	var err error
	for !d.done && err == nil {
		err = rd.receive(c.nc)
		if rd.n > 0 {
			c.reads.Add(1)
			c.readBytes.Add(uint64(rd.n))
			if d.have += rd.n; !d.fits() {
				d.s.in.expect = 0
				break
			}
			d.done = d.have == frameHeaderLen+len(d.to)
		} else {
			err = rd.noBytes(err)
		}
	}
	rd.direct = nil
	if d.done {
		d.arrived(rd)
	} else if d.have > 0 {
		rd.ensureBuffer()
		n := copy(rd.buf[:], d.header[:min(d.have, frameHeaderLen)])
		rd.w = n + copy(rd.buf[n:], d.to[:d.have-n])
	}
	return err
}

// take returns dst with the message, when it is there.
func (d *directInput) take(dst []byte) ([]byte, bool) {
	if d == nil {
		return dst, false
	}
	n := len(d.to)
	d.to = nil
	if !d.done {
		return dst, false
	}
	d.s.in.count += n + messageCost
	return dst[:len(dst)+n], true
}

// read is sockio.Read for what is left of the header and the message.
func (d *directInput) read(fd uintptr, woken bool) (n int, again bool, err error) {
	if d.have < frameHeaderLen {
		return d.two.Read(fd, d.header[d.have:], d.to)
	}
	return sockio.Read(fd, d.to[d.have-frameHeaderLen:], woken)
}

// fits reports whether what was read can be the message that is expected: one
// that the reader would take in without looking at anything else.
func (d *directInput) fits() bool {
	if d.have < frameHeaderLen {
		return true
	}
	in, limits := &d.s.in, &d.s.conn.cfg.Limits
	want := FrameHeader{Length: uint32(len(d.to)), Type: FrameData, Flags: d.s.back ^ FlagBack, ID: d.s.id}
	h, err := ParseFrameHeader(d.header[:])
	return err == nil && h == want && len(d.to) <= min(limits.MaxFrame, limits.MaxMessage) && !in.closed && !in.reset &&
		fitsWindow(limits.StreamWindow, d.s.window(), len(d.to)+messageCost)
}

// arrived takes the message in.
func (d *directInput) arrived(rd *reader) {
	rd.message()
	rd.delivered, rd.served, rd.streamed = false, false, true
	d.s.in.got.Add(uint64(len(d.to) + messageCost))
	rd.c.streamGot.Add(1)
	if dropped := d.s.arrived(nil, nil, false); dropped { // the stream was cut while it was read
		d.done = false
		rd.c.out.FlushControl()
	}
}
