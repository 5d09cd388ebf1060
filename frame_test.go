package plugwire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
)

// endless yields zero bytes for ever.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// headerBytes returns the bytes of a header.
func headerBytes(h FrameHeader) []byte { return appendFrameHeader(nil, h) }

func TestFrameReaderLengthBoundaries(t *testing.T) {
	const limit = 70000 // above both buffers' steps
	for _, length := range []uint32{0, 1, limit - 1, limit, limit + 1, math.MaxInt32, 1 << 31, math.MaxUint32} {
		for _, max := range []int{limit, 0, -1, math.MaxInt} {
			t.Run(fmt.Sprintf("length=%d/max=%d", length, max), func(t *testing.T) {
				ok := max > 0 && uint64(length) <= uint64(max) && length <= math.MaxInt32 || length == 0
				if ok && length == math.MaxInt32 {
					t.Skip("this one may be read in whole: see TestFrameReaderAllocatesAsBytesArrive")
				}
				h := FrameHeader{Length: length, Type: FrameCall, Code: 3, ID: 4}
				r := NewFrameReader(io.MultiReader(bytes.NewReader(headerBytes(h)), endless{}), max)
				got, payload, err := r.ReadFrame()
				if got != h {
					t.Errorf("header %+v, want %+v", got, h)
				}
				if ok && (err != nil || len(payload) != int(length)) {
					t.Errorf("%d bytes, error %v", len(payload), err)
				}
				if ok {
					return
				}
				if !errors.Is(err, errFrameTooLong) || payload != nil {
					t.Errorf("%d bytes, error %v", len(payload), err)
				}
				if cap(r.buf) != 0 {
					t.Errorf("%d bytes allocated", cap(r.buf))
				}
				if _, _, again := r.ReadFrame(); again != err {
					t.Errorf("the next call read on behind the bad frame: %v", again)
				}
			})
		}
	}
}

// allocated returns the bytes that f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	least := uint64(math.MaxUint64)
	for range 3 { // the least of several, for what other goroutines allocate meanwhile
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		least = min(least, after.TotalAlloc-before.TotalAlloc)
	}
	return least
}

func TestFrameReaderAllocatesLittleForALengthThatLies(t *testing.T) {
	for _, length := range []uint32{maxFrame, 64 << 20, math.MaxInt32, math.MaxUint32} {
		var err error
		n := allocated(func() {
			wire := append(headerBytes(FrameHeader{Length: length, Type: FrameCall}), "ten bytes."...)
			_, _, err = NewFrameReader(bytes.NewReader(wire), math.MaxInt).ReadFrame()
		})
		if length <= math.MaxInt32 && err != io.ErrUnexpectedEOF || length > math.MaxInt32 && !errors.Is(err, errFrameTooLong) {
			t.Errorf("length %d: error %v", length, err)
		}
		if n > 64<<10 {
			t.Errorf("length %d, and ten bytes sent: %d bytes allocated", length, n)
		}
	}
}

// TestFrameReaderAllocatesAsBytesArrive sends part of the longest frame there can be.
func TestFrameReaderAllocatesAsBytesArrive(t *testing.T) {
	for _, sent := range []int{frameReadStep - 1, frameReadStep, frameReadStep + 1, 200_000, 1 << 20} {
		r := NewFrameReader(io.MultiReader(
			bytes.NewReader(headerBytes(FrameHeader{Length: math.MaxInt32, Type: FrameData})),
			io.LimitReader(endless{}, int64(sent))), math.MaxInt)
		if _, _, err := r.ReadFrame(); err != io.ErrUnexpectedEOF {
			t.Errorf("error %v", err)
		}
		if most := max(2*sent, sent+frameReadStep); cap(r.buf) > most {
			t.Errorf("%d bytes arrived, %d allocated", sent, cap(r.buf))
		}
	}
}

// sampleFrames are payloads of lengths around the steps of reader and writer.
func sampleFrames() (wire []byte, payloads [][]byte) {
	for i, n := range []int{0, 1, 11, 12, 13, 4096, frameReadStep - 1, frameReadStep, frameReadStep + 1, 5, frameWriteSize, 100_000, 0} {
		payload := bytes.Repeat([]byte{byte(i + 1)}, n)
		payloads = append(payloads, payload)
		wire = appendFrameHeader(wire, FrameHeader{Length: uint32(n), Type: FrameData, Flags: FlagBack, ID: uint32(i)})
		wire = append(wire, payload...)
	}
	return wire, payloads
}

func TestFrameReaderDoesNotCareHowBytesArrive(t *testing.T) {
	wire, payloads := sampleFrames()
	for name, chunked := range map[string]func(io.Reader) io.Reader{
		"whole":       func(r io.Reader) io.Reader { return r },
		"one byte":    iotest.OneByteReader,
		"half":        iotest.HalfReader,
		"data+EOF":    iotest.DataErrReader,
		"half+EOF":    func(r io.Reader) io.Reader { return iotest.DataErrReader(iotest.HalfReader(r)) },
		"empty reads": func(r io.Reader) io.Reader { return &emptyReads{r: r} },
	} {
		t.Run(name, func(t *testing.T) {
			r := NewFrameReader(chunked(bytes.NewReader(wire)), 100_000)
			for i, want := range payloads {
				h, payload, err := r.ReadFrame()
				if err != nil || int(h.ID) != i || !bytes.Equal(payload, want) {
					t.Fatalf("frame %d: %+v, %d bytes, error %v", i, h, len(payload), err)
				}
			}
			if _, _, err := r.ReadFrame(); err != io.EOF {
				t.Errorf("error %v at the end", err)
			}
		})
	}
}

// emptyReads returns 0 bytes and no error at every other read.
type emptyReads struct {
	r     io.Reader
	count int
}

func (e *emptyReads) Read(b []byte) (int, error) {
	if e.count++; e.count%2 == 1 {
		return 0, nil
	}
	return e.r.Read(b)
}

func TestFrameReaderPassesTheReadersErrorOn(t *testing.T) {
	broken := errors.New("broken")
	frame := append(headerBytes(FrameHeader{Length: 4, Type: FramePing}), "ping"...)
	for cut := range len(frame) + 1 {
		r := NewFrameReader(io.MultiReader(bytes.NewReader(frame[:cut]), iotest.ErrReader(broken)), 8)
		_, payload, err := r.ReadFrame()
		if cut == len(frame) {
			if err != nil || string(payload) != "ping" {
				t.Fatalf("%q, %v", payload, err)
			}
			_, _, err = r.ReadFrame()
		}
		if err != broken {
			t.Errorf("broken after %d bytes: error %v", cut, err)
		}
	}
}

// TestFrameReaderGoesOnAfterAnErrorBetweenFrames is for readers with deadlines:
// where no byte of a frame was read, nothing is lost; inside a frame it is.
func TestFrameReaderGoesOnAfterAnErrorBetweenFrames(t *testing.T) {
	ping := append(headerBytes(FrameHeader{Length: 4, Type: FramePing}), "ping"...)
	var script []io.Reader
	for _, b := range [][]byte{ping, ping[:5], ping} {
		script = append(script, bytes.NewReader(b), &once{iotest.ErrTimeout})
	}
	r := NewFrameReader(&inTurn{script}, 8)
	for i, want := range []error{nil, iotest.ErrTimeout, iotest.ErrTimeout, iotest.ErrTimeout} {
		if _, _, err := r.ReadFrame(); err != want {
			t.Fatalf("read %d: error %v, want %v", i, err, want)
		}
	}
	r = NewFrameReader(&inTurn{[]io.Reader{&once{iotest.ErrTimeout}, bytes.NewReader(ping)}}, 8)
	if _, _, err := r.ReadFrame(); err != iotest.ErrTimeout {
		t.Fatal(err)
	}
	if _, payload, err := r.ReadFrame(); err != nil || string(payload) != "ping" {
		t.Errorf("after an error between frames: %q, %v", payload, err)
	}
}

// once returns its error one time, then io.EOF.
type once struct{ err error }

func (o *once) Read([]byte) (int, error) {
	err := o.err
	o.err = io.EOF
	return 0, err
}

// inTurn reads from one reader after the other, as io.MultiReader does, but
// goes on after an error.
type inTurn struct{ readers []io.Reader }

func (m *inTurn) Read(b []byte) (int, error) {
	for len(m.readers) > 0 {
		n, err := m.readers[0].Read(b)
		if n > 0 || err != io.EOF {
			return n, err
		}
		m.readers = m.readers[1:]
	}
	return 0, io.EOF
}

func TestParseFrameHeaderKnowsEveryTypeAndFlag(t *testing.T) {
	for typ := range 256 {
		for flags := range 256 {
			h := FrameHeader{Length: 9, Type: FrameType(typ), Flags: FrameFlags(flags), Code: 7, ID: 1 << 31}
			want := typ >= 0x80 || typ >= 1 && typ < len(frameTypeNames) && h.Flags&^frameFlagsAllowed[typ] == 0
			got, err := ParseFrameHeader(headerBytes(h))
			if got != h || (err == nil) != want {
				t.Fatalf("%+v: %+v, error %v", h, got, err)
			}
			if err != nil && !strings.Contains(err.Error(), h.Type.String()) {
				t.Fatalf("the error does not name the type %v: %v", h.Type, err)
			}
		}
	}
	for n := range frameHeaderLen {
		if h, err := ParseFrameHeader(make([]byte, n)); err != io.ErrUnexpectedEOF || h != (FrameHeader{}) {
			t.Errorf("%d bytes: %+v, %v", n, h, err)
		}
	}
}

func TestFrameErrorsNameWhatIsWrong(t *testing.T) {
	for want, h := range map[string]FrameHeader{
		"plugwire: unknown frame type(0x7f)":                          {Type: 0x7f},
		"plugwire: unknown frame type(0x00)":                          {},
		"plugwire: PING frame with flag MORE":                         {Type: FramePing, Flags: FlagMore},
		"plugwire: CALL frame with flag BACK|0x80":                    {Type: FrameCall, Flags: FlagMeta | FlagBack | 0x80},
		"plugwire: CALL of 9 bytes: frame longer than the limit of 8": {Type: FrameCall, Length: 9},
	} {
		if _, _, err := NewFrameReader(bytes.NewReader(headerBytes(h)), 8).ReadFrame(); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestFrameReaderReturnsSkippableFrames(t *testing.T) {
	var wire bytes.Buffer
	w := NewFrameWriter(&wire)
	w.WriteFrame(FrameHeader{Type: FrameSkippable | 0x2a, Flags: 0xff, Code: 1, ID: 2}, []byte("later"))
	w.WriteFrame(FrameHeader{Type: FramePing}, []byte("8 bytes."))
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	r := NewFrameReader(&wire, 8)
	if h, payload, err := r.ReadFrame(); h.Type != 0xaa || string(payload) != "later" || err != nil {
		t.Errorf("%+v %q %v", h, payload, err)
	}
	if h, _, err := r.ReadFrame(); h.Type != FramePing || err != nil {
		t.Errorf("%+v %v", h, err)
	}
}

func TestFrameReaderAndWriterAllocateNothingOnceWarm(t *testing.T) {
	payload := bytes.Repeat([]byte("x"), 1000)
	h := FrameHeader{Type: FrameCall, Flags: FlagDeadline, Code: 2, ID: 3}
	w := NewFrameWriter(io.Discard)
	write := func() {
		if err := w.WriteFrame(h, payload); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 { // fills and flushes the buffer
		write()
	}
	if n := testing.AllocsPerRun(1000, write); n != 0 {
		t.Errorf("writer: %v allocations per frame", n)
	}

	h.Length = uint32(len(payload))
	wire := bytes.NewReader(append(headerBytes(h), payload...))
	r := NewFrameReader(wire, maxFrame)
	read := func() {
		wire.Seek(0, io.SeekStart)
		if _, p, err := r.ReadFrame(); err != nil || len(p) != len(payload) {
			t.Fatal(len(p), err)
		}
	}
	read()
	if n := testing.AllocsPerRun(1000, read); n != 0 {
		t.Errorf("reader: %v allocations per frame", n)
	}
	b := make([]byte, 0, frameHeaderLen)
	if n := testing.AllocsPerRun(1000, func() {
		b, _ = h.AppendBinary(b[:0])
		if got, err := ParseFrameHeader(b); got != h || err != nil {
			t.Fatal(got, err)
		}
	}); n != 0 {
		t.Errorf("header: %v allocations", n)
	}
}

// shortWriter takes part of what it is given.
type shortWriter struct {
	take int
	err  error
	n    int // writes
}

func (s *shortWriter) Write(b []byte) (int, error) {
	s.n++
	return min(s.take, len(b)), s.err
}

func TestFrameWriterReportsShortWritesForEver(t *testing.T) {
	full := errors.New("disk full")
	for _, test := range []struct {
		w    shortWriter
		want error
	}{
		{shortWriter{take: 0}, io.ErrShortWrite},
		{shortWriter{take: 13}, io.ErrShortWrite},
		{shortWriter{take: 13, err: full}, full},
		{shortWriter{take: math.MaxInt, err: full}, full},
	} {
		w := NewFrameWriter(&test.w)
		if err := w.WriteFrame(FrameHeader{Type: FramePing}, []byte("8 bytes.")); err != nil || test.w.n != 0 {
			t.Errorf("the first frame was not kept: %v", err)
		}
		for i := range 2 {
			if err := w.Flush(); err != test.want {
				t.Errorf("flush %d: %v, want %v", i, err, test.want)
			}
			if err := w.WriteFrame(FrameHeader{Type: FramePing}, nil); err != test.want {
				t.Errorf("write %d: %v, want %v", i, err, test.want)
			}
		}
		if test.w.n != 1 {
			t.Errorf("%d writes after the failed one", test.w.n-1)
		}
	}
}

func TestFrameWriterWritesManyFramesAtOnce(t *testing.T) {
	wire, payloads := sampleFrames()
	var got bytes.Buffer
	writes := shortWriter{take: math.MaxInt}
	w := NewFrameWriter(io.MultiWriter(&got, &writes))
	if err := w.Flush(); err != nil || writes.n != 0 {
		t.Errorf("an empty Flush: %v, %d writes", err, writes.n)
	}
	for i, payload := range payloads {
		// The length is the payload's, whatever the header says.
		h := FrameHeader{Length: 1 << 30, Type: FrameData, Flags: FlagBack, ID: uint32(i)}
		if err := w.WriteFrame(h, payload); err != nil {
			t.Fatal(err)
		}
		clear(payload) // it was copied
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), wire) {
		t.Error("the bytes differ")
	}
	if writes.n >= len(payloads)/2 {
		t.Errorf("%d writes for %d frames", writes.n, len(payloads))
	}
}

func TestFieldReaderReturnsNothingPastTheEnd(t *testing.T) {
	f := fieldReader{b: []byte{1, 2, 3}}
	if f.take(-1) != nil || !f.bad {
		t.Error("took a negative length")
	}
	f = fieldReader{b: []byte{1, 2, 3}}
	if n := f.u16(); n != 0x201 || f.bad {
		t.Errorf("%#x, %v", n, f.bad)
	}
	if n := f.u64(); n != 0 || !f.bad {
		t.Errorf("%#x, %v", n, f.bad)
	}
	if f.u8() != 0 || f.u16() != 0 || f.u32() != 0 || f.take(0) != nil || !f.bad {
		t.Error("a field came after one that was cut off")
	}
}

func TestErrorPayloadTextIsBounded(t *testing.T) {
	text, detail, err := parseErrorPayload(appendErrorPayload(nil, strings.Repeat("x", 1<<16), []byte("detail")))
	if len(text) != 1<<16-1 || string(detail) != "detail" || err != nil {
		t.Errorf("%d bytes of text, detail %q, %v", len(text), detail, err)
	}
}

func FuzzFrameHeader(f *testing.F) {
	entries, _ := readGolden(f)
	for _, e := range entries {
		f.Add(e.wire)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseFrameHeader(b)
		if len(b) < frameHeaderLen {
			if err != io.ErrUnexpectedEOF {
				t.Fatalf("%d bytes: %v", len(b), err)
			}
			return
		}
		if again, _ := h.AppendBinary(nil); !bytes.Equal(again, b[:frameHeaderLen]) {
			t.Fatalf("%x became %x", b[:frameHeaderLen], again)
		}
		_, _ = h.Type.String(), h.Flags.String()
		if err == nil && !h.Type.known() && h.Type < FrameSkippable {
			t.Fatalf("accepted %+v", h)
		}
	})
}

// chunks yields data in pieces whose lengths the bytes of sizes give, in turn.
type chunks struct {
	data, sizes []byte
	turn        int
}

func (c *chunks) Read(b []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := len(b)
	if len(c.sizes) > 0 {
		n = min(n, 1+int(c.sizes[c.turn%len(c.sizes)]))
		c.turn++
	}
	n = copy(b[:n], c.data)
	c.data = c.data[n:]
	return n, nil
}

func FuzzFrameStream(f *testing.F) {
	entries, sequences := readGolden(f)
	for _, e := range entries {
		f.Add(e.wire, []byte{0, 3}, uint32(4096))
	}
	for _, sequence := range sequences {
		var wire []byte
		for _, e := range sequence[1:] {
			wire = append(wire, e.wire...)
		}
		f.Add(wire, []byte{11, 0, 200}, uint32(1<<20))
	}
	f.Fuzz(func(t *testing.T, data, sizes []byte, most uint32) {
		limit := int(most & math.MaxInt32)
		whole := NewFrameReader(bytes.NewReader(data), limit)
		pieces := NewFrameReader(&chunks{data: data, sizes: sizes}, limit)
		var wire bytes.Buffer
		w := NewFrameWriter(&wire)
		for {
			h, payload, err := whole.ReadFrame()
			h2, payload2, err2 := pieces.ReadFrame()
			if h != h2 || !bytes.Equal(payload, payload2) || fmt.Sprint(err) != fmt.Sprint(err2) {
				t.Fatalf("in one piece: %+v %x %v\nin pieces: %+v %x %v", h, payload, err, h2, payload2, err2)
			}
			if err != nil {
				if payload != nil {
					t.Fatalf("a payload with %v", err)
				}
				if err == io.EOF && wire.Len()+len(w.buf) != len(data) {
					t.Fatalf("%d of %d bytes became frames", wire.Len()+len(w.buf), len(data))
				}
				break
			}
			if len(payload) != int(h.Length) || len(payload) > limit {
				t.Fatalf("%+v with %d bytes, limit %d", h, len(payload), limit)
			}
			if err := w.WriteFrame(h, payload); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(data, wire.Bytes()) {
			t.Fatalf("read from  %x\nwritten as %x", data, wire.Bytes())
		}
		if n := cap(whole.buf); n > frameReadStep+2*len(data) {
			t.Fatalf("%d bytes allocated for %d", n, len(data))
		}
	})
}
