package plugwire

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/bits"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A goldenField is one line of a golden entry's payload.
type goldenField struct {
	kind  string // u8, u16, u32, u64, text or hex
	num   uint64 // of the numbers
	bytes []byte // of text and hex
	label string
}

// A goldenEntry is one entry of testdata/golden.txt.
type goldenEntry struct {
	name   string
	frame  bool // false: the magic
	header FrameHeader
	fields []goldenField
	wire   []byte
}

func (e *goldenEntry) payload() []byte {
	if e.frame {
		return e.wire[frameHeaderLen:]
	}
	return e.wire
}

// readGolden reads testdata/golden.txt; the file explains its form.
func readGolden(t testing.TB) (entries []*goldenEntry, sequences map[string][]*goldenEntry) {
	t.Helper()
	text, err := os.ReadFile("testdata/golden.txt")
	if err != nil {
		t.Fatal(err)
	}
	sequences = map[string][]*goldenEntry{}
	var e *goldenEntry
	for i, line := range strings.Split(string(text), "\n") {
		bad := func(err any) { t.Helper(); t.Fatalf("testdata/golden.txt:%d: %q: %v", i+1, line, err) }
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		rest = strings.TrimSpace(rest)
		switch {
		case word == "" || word[0] == '#':
			continue
		case word == "frame" || word == "magic":
			if goldenNamed(entries, rest) != nil {
				bad("this name is there twice")
			}
			e = &goldenEntry{name: rest, frame: word == "frame"}
			entries = append(entries, e)
			continue
		case word == "sequence":
			side, names, _ := strings.Cut(rest, ":")
			for _, name := range strings.Fields(names) {
				if e := goldenNamed(entries, name); e == nil {
					bad("no entry " + name)
				} else {
					sequences[side] = append(sequences[side], e)
				}
			}
			continue
		case e == nil:
			bad("outside an entry")
		}
		switch word {
		case "header":
			e.header, err = parseGoldenHeader(rest)
		case "wire":
			var b []byte
			b, err = hex.DecodeString(strings.ReplaceAll(rest, " ", ""))
			e.wire = append(e.wire, b...)
		default:
			var f goldenField
			f, err = parseGoldenField(word, rest)
			e.fields = append(e.fields, f)
		}
		if err != nil {
			bad(err)
		}
	}
	return entries, sequences
}

func goldenNamed(entries []*goldenEntry, name string) *goldenEntry {
	for _, e := range entries {
		if e.name == name {
			return e
		}
	}
	return nil
}

var goldenHeader = regexp.MustCompile(`^(\S+) (\S+) code=(\d+) id=(\d+) length=(\d+)$`)

func parseGoldenHeader(s string) (h FrameHeader, err error) {
	m := goldenHeader.FindStringSubmatch(s)
	if m == nil {
		return h, fmt.Errorf("not a header")
	}
	if i := slices.Index(frameTypeNames[:], m[1]); i > 0 {
		h.Type = FrameType(i)
	} else if n, err := strconv.ParseUint(m[1], 0, 8); err == nil {
		h.Type = FrameType(n)
	} else {
		return h, fmt.Errorf("no type %s", m[1])
	}
	for name := range strings.SplitSeq(m[2], "|") {
		if i := slices.Index(frameFlagNames[:], name); i >= 0 {
			h.Flags |= 1 << i
		} else if n, err := strconv.ParseUint(name, 0, 8); err == nil {
			h.Flags |= FrameFlags(n)
		} else {
			return h, fmt.Errorf("no flag %s", name)
		}
	}
	code, err1 := strconv.ParseUint(m[3], 10, 16)
	id, err2 := strconv.ParseUint(m[4], 10, 32)
	length, err3 := strconv.ParseUint(m[5], 10, 32)
	h.Code, h.ID, h.Length = uint16(code), uint32(id), uint32(length)
	for _, err := range []error{err1, err2, err3} {
		if err != nil {
			return h, err
		}
	}
	return h, nil
}

var goldenWidth = map[string]int{"u8": 1, "u16": 2, "u32": 4, "u64": 8}

func parseGoldenField(kind, rest string) (f goldenField, err error) {
	f.kind = kind
	var value string
	if kind == "text" {
		if value, err = strconv.QuotedPrefix(rest); err != nil {
			return f, err
		}
		f.bytes = []byte(value[1 : len(value)-1])
		f.label = strings.TrimSpace(rest[len(value):])
		return f, nil
	}
	value, f.label, _ = strings.Cut(rest, " ")
	f.label = strings.TrimSpace(f.label)
	if kind == "hex" {
		f.bytes, err = hex.DecodeString(value)
	} else if w := goldenWidth[kind]; w > 0 {
		f.num, err = strconv.ParseUint(value, 10, 8*w)
	} else {
		err = fmt.Errorf("no such kind of line: %s", kind)
	}
	return f, err
}

// appendTo lays out f as the protocol does.
func (f *goldenField) appendTo(dst []byte) []byte {
	switch f.kind {
	case "u8":
		return append(dst, byte(f.num))
	case "u16":
		return binary.LittleEndian.AppendUint16(dst, uint16(f.num))
	case "u32":
		return binary.LittleEndian.AppendUint32(dst, uint32(f.num))
	case "u64":
		return binary.LittleEndian.AppendUint64(dst, f.num)
	}
	return append(dst, f.bytes...)
}

// readFrom reads the same field from r with the package's own decoder.
func (f *goldenField) readFrom(r *fieldReader) (g goldenField) {
	g = *f
	switch f.kind {
	case "u8":
		g.num = uint64(r.u8())
	case "u16":
		g.num = uint64(r.u16())
	case "u32":
		g.num = uint64(r.u32())
	case "u64":
		g.num = r.u64()
	default:
		g.bytes = r.take(len(f.bytes))
	}
	return g
}

func TestGoldenFieldsEncodeToTheirBytes(t *testing.T) {
	entries, _ := readGolden(t)
	for _, e := range entries {
		var payload []byte
		for _, f := range e.fields {
			payload = f.appendTo(payload)
		}
		if !e.frame {
			if string(payload) != wireMagic || string(e.wire) != wireMagic {
				t.Errorf("%s: %x, %x, the package has %x", e.name, payload, e.wire, wireMagic)
			}
			continue
		}
		var wire bytes.Buffer
		w := NewFrameWriter(&wire)
		if err := w.WriteFrame(e.header, payload); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(wire.Bytes(), e.wire) {
			t.Errorf("%s:\nfields make %x\nwire is     %x", e.name, wire.Bytes(), e.wire)
		}
		if head, _ := e.header.AppendBinary(nil); !bytes.Equal(head, e.wire[:frameHeaderLen]) {
			t.Errorf("%s: AppendBinary makes %x", e.name, head)
		}
	}
}

func TestGoldenBytesDecodeToTheirFields(t *testing.T) {
	entries, _ := readGolden(t)
	for _, e := range entries {
		if !e.frame {
			continue
		}
		r := NewFrameReader(bytes.NewReader(e.wire), maxFrame)
		h, payload, err := r.ReadFrame()
		if err != nil || h != e.header {
			t.Errorf("%s: header %+v, want %+v; error %v", e.name, h, e.header, err)
			continue
		}
		fields := fieldReader{b: payload}
		for _, want := range e.fields {
			got := want.readFrom(&fields)
			if fields.bad || got.num != want.num || !bytes.Equal(got.bytes, want.bytes) {
				t.Errorf("%s: %s is %d %x, want %d %x", e.name, want.label, got.num, got.bytes, want.num, want.bytes)
			}
		}
		if fields.bad || len(fields.b) != 0 {
			t.Errorf("%s: %x is left of the payload (truncated: %v)", e.name, fields.b, fields.bad)
		}
		if h, p, err := r.ReadFrame(); err != io.EOF {
			t.Errorf("%s: after it came %+v %x, %v", e.name, h, p, err)
		}
	}
}

func TestGoldenHasEveryTypeAndFlag(t *testing.T) {
	entries, _ := readGolden(t)
	seen := map[FrameType]FrameFlags{}
	for _, e := range entries {
		seen[e.header.Type] |= e.header.Flags
	}
	for i := range frameTypeNames {
		typ := FrameType(i)
		if !typ.known() {
			continue
		}
		if _, ok := seen[typ]; !ok {
			t.Errorf("no golden frame of type %v", typ)
		}
		if seen[typ] != frameFlagsAllowed[typ] {
			t.Errorf("golden %v frames have flags %v, allowed are %v", typ, seen[typ], frameFlagsAllowed[typ])
		}
	}
}

// TestGoldenPrefixFieldsFollowTheFlags holds the first lines of each message's
// payload to the order that docs/PROTOCOL.md gives.
func TestGoldenPrefixFieldsFollowTheFlags(t *testing.T) {
	entries, _ := readGolden(t)
	for _, e := range entries {
		f := e.fields
		lead := func(kind, label string) goldenField {
			if len(f) == 0 || f[0].kind != kind || !strings.HasPrefix(f[0].label, label) {
				t.Errorf("%s: %v frame has no %s at its place", e.name, e.header.Flags, label)
				return goldenField{}
			}
			first := f[0]
			f = f[1:]
			return first
		}
		h := e.header
		if h.Type >= FrameSkippable {
			continue
		}
		if h.Flags&FlagBegin != 0 {
			if h.Flags&FlagMore == 0 {
				t.Errorf("%s: BEGIN without MORE", e.name)
			}
			if total := lead("u32", "total").num; total == 0 {
				t.Errorf("%s: total is 0", e.name)
			}
		}
		if h.Flags&FlagDeadline != 0 {
			if lead("u64", "deadline").num > 1<<63-1 {
				t.Errorf("%s: deadline above 2^63-1", e.name)
			}
		}
		if h.Flags&FlagMeta != 0 {
			left := int(lead("u16", "metadata length").num)
			for left > 0 {
				n := int(lead("u8", "key length").num)
				if n != len(lead("text", "key").bytes) {
					t.Fatalf("%s: metadata key is not %d bytes", e.name, n)
				}
				left -= 3 + n
				if n := int(lead("u16", "value length").num); n > 0 {
					left -= n
					if len(f) == 0 || len(f[0].bytes) != n || f[0].label != "value" {
						t.Fatalf("%s: metadata value is not %d bytes", e.name, n)
					}
					f = f[1:]
				}
			}
			if left != 0 {
				t.Errorf("%s: metadata has %d bytes more than its length", e.name, -left)
			}
		}
		opening := h.Type == FrameCall || h.Type == FrameNotify || h.Type == FrameOpen && h.Flags&FlagBack == 0
		if opening && h.Code == 0 && !strings.HasSuffix(e.name, "-more") && !strings.HasSuffix(e.name, "-end") {
			if n := lead("u8", "name length").num; int(n) != len(lead("text", "name").bytes) {
				t.Errorf("%s: the name is not %d bytes", e.name, n)
			}
		}
	}
}

func TestGoldenPayloadsMatchThePackagesEncoders(t *testing.T) {
	entries, _ := readGolden(t)
	text, detail, err := parseErrorPayload(goldenNamed(entries, "error").payload())
	if err != nil || string(text) != "no user" || string(detail) != "\n\v" {
		t.Errorf("error: %q, %q, %v", text, detail, err)
	}
	for name, want := range map[string][]byte{
		"error":        appendErrorPayload(nil, "no user", []byte("\n\v")),
		"error-empty":  appendErrorPayload(nil, "", nil),
		"error-notrun": appendErrorPayload(nil, "no such thing", nil),
		"credit":       appendCreditPayload(nil, 1<<32, 1000003),
	} {
		if got := goldenNamed(entries, name).payload(); !bytes.Equal(got, want) {
			t.Errorf("%s: the file has %x, the package makes %x", name, got, want)
		}
	}
}

func TestGoldenFramesCutAtEveryOffset(t *testing.T) {
	entries, _ := readGolden(t)
	for _, e := range entries {
		if !e.frame {
			continue
		}
		for cut := range e.wire {
			want := io.ErrUnexpectedEOF
			if cut == 0 {
				want = io.EOF
			}
			_, payload, err := NewFrameReader(bytes.NewReader(e.wire[:cut]), maxFrame).ReadFrame()
			if err != want || payload != nil {
				t.Errorf("%s cut at %d: payload %x, error %v, want %v", e.name, cut, payload, err, want)
			}
		}
	}
}

// TestErrorPayloadCutAtEveryOffset cuts payloads rather than frames: what a
// frame of the right length can still lie about.
func TestErrorPayloadCutAtEveryOffset(t *testing.T) {
	entries, _ := readGolden(t)
	payload := goldenNamed(entries, "error-notrun").payload()
	for cut := range payload {
		if text, _, err := parseErrorPayload(payload[:cut]); err != errTruncated {
			t.Errorf("cut at %d: %q, %v", cut, text, err)
		}
	}
}

func TestGoldenSequencesAreFrames(t *testing.T) {
	_, sequences := readGolden(t)
	for _, side := range []string{"dialler", "listener"} {
		sequence := sequences[side]
		if len(sequence) < 2 || sequence[0].frame || sequence[1].header.Type != FrameHello {
			t.Fatalf("%s does not begin with magic and HELLO", side)
		}
		var wire []byte
		for _, e := range sequence {
			wire = append(wire, e.wire...)
		}
		r := NewFrameReader(bytes.NewReader(wire[len(wireMagic):]), 4096)
		for _, e := range sequence[1:] {
			if h, payload, err := r.ReadFrame(); h != e.header || !bytes.Equal(payload, e.payload()) || err != nil {
				t.Fatalf("%s: %s: got %+v %x %v", side, e.name, h, payload, err)
			}
		}
		if _, _, err := r.ReadFrame(); err != io.EOF {
			t.Errorf("%s: %v at the end", side, err)
		}
	}
}

// protocolTable returns the rows of the table in docs/PROTOCOL.md whose heading
// cells are the given ones, without code quotes.
func protocolTable(t *testing.T, heading ...string) (rows [][]string) {
	t.Helper()
	text, err := os.ReadFile("docs/PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	cells := func(line string) (row []string) {
		line = strings.ReplaceAll(strings.Trim(strings.TrimSpace(line), "|"), "`", "")
		for cell := range strings.SplitSeq(line, "|") {
			row = append(row, strings.TrimSpace(cell))
		}
		return row
	}
	lines := strings.Split(string(text), "\n")
	for i, line := range lines {
		if !strings.HasPrefix(line, "|") || !slices.Equal(cells(line), heading) {
			continue
		}
		for _, line := range lines[i+2:] {
			if !strings.HasPrefix(line, "|") {
				return rows
			}
			row := cells(line)
			if len(row) != len(heading) {
				t.Fatalf("docs/PROTOCOL.md: %q has %d cells", line, len(row))
			}
			rows = append(rows, row)
		}
	}
	t.Fatalf("docs/PROTOCOL.md has no table %q", heading)
	return nil
}

func protocolNumber(t *testing.T, s string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(strings.ReplaceAll(s, ",", ""), 0, 64)
	if err != nil {
		t.Fatalf("docs/PROTOCOL.md: %v", err)
	}
	return n
}

func TestProtocolDocumentTypeNumbers(t *testing.T) {
	seen := map[string]bool{}
	for _, row := range protocolTable(t, "Number", "Type", "Code", "Id", "Payload") {
		typ := FrameType(protocolNumber(t, row[0]))
		if typ.String() != row[1] || !typ.known() || seen[row[1]] {
			t.Errorf("the document has %s as %#02x, which is %v here (twice: %v)", row[1], uint8(typ), typ, seen[row[1]])
		}
		seen[row[1]] = true
	}
	for i, name := range frameTypeNames {
		if FrameType(i).known() && !seen[name] {
			t.Errorf("the document has no type %s", name)
		}
	}
}

func TestProtocolDocumentFlags(t *testing.T) {
	numbers := map[string]FrameFlags{}
	for _, row := range protocolTable(t, "Bit", "Flag", "Meaning") {
		n := protocolNumber(t, row[0])
		if bits.OnesCount64(n) != 1 || frameFlagNames[bits.TrailingZeros64(n)] != row[1] {
			t.Errorf("the document has flag %s as %#x", row[1], n)
		}
		numbers[row[1]] = FrameFlags(n)
	}
	if len(numbers) != len(frameFlagNames)-1 {
		t.Errorf("the document has %d flags", len(numbers))
	}
	seen := map[string]bool{}
	for _, row := range protocolTable(t, "Type", "Flags allowed") {
		typ := slices.Index(frameTypeNames[:], row[0])
		if typ < 1 || seen[row[0]] {
			t.Errorf("flag table: type %s is unknown or there twice", row[0])
			continue
		}
		seen[row[0]] = true
		var flags FrameFlags
		for name := range strings.SplitSeq(row[1], ",") {
			name = strings.TrimSpace(name)
			if name != "none" && numbers[name] == 0 {
				t.Errorf("flag table: %s has flag %q", row[0], name)
			}
			flags |= numbers[name]
		}
		if flags != frameFlagsAllowed[typ] {
			t.Errorf("%s: the document allows %v, the package %v", row[0], flags, frameFlagsAllowed[typ])
		}
	}
	for i, name := range frameTypeNames {
		if FrameType(i).known() && !seen[name] {
			t.Errorf("the flag table has no type %s", name)
		}
	}
}

func TestProtocolDocumentStatusCodes(t *testing.T) {
	rows := protocolTable(t, "Status", "Name", "Meaning")
	for i, row := range rows {
		if protocolNumber(t, row[0]) != uint64(i) || codeNames[i] != row[1] {
			t.Errorf("the document has status %s as %s", row[0], row[1])
		}
	}
	if len(rows) != len(codeNames) {
		t.Errorf("the document has %d status codes, the package %d", len(rows), len(codeNames))
	}
}

func TestProtocolDocumentLimits(t *testing.T) {
	def := (*Config)(nil).withDefaults().Limits
	want := map[string]int{
		"max frame payload": def.MaxFrame,
		"max message":       def.MaxMessage,
		"slots":             def.MaxCalls,
		"one-way window":    def.OneWayWindow,
		"request bytes":     def.MaxRequestBytes,
	}
	found := 0
	for _, row := range protocolTable(t, "Limit", "Least", "Default of plugwire-go", "Bounds", "Over it") {
		if n, ok := want[row[0]]; ok {
			found++
			if protocolNumber(t, row[2]) != uint64(n) {
				t.Errorf("%s: the document has %s as the default, the package %d", row[0], row[2], n)
			}
		}
	}
	if found != len(want) {
		t.Errorf("the limits table has %d of %d limits", found, len(want))
	}
}

func TestProtocolDocumentGoAwayCodes(t *testing.T) {
	want := map[string]uint64{"drain": goAwayDrain, "ack": goAwayAck, "done": goAwayDone, "failed": goAwayFailed}
	rows := protocolTable(t, "Code", "Name", "Meaning")
	for _, row := range rows {
		if want[row[1]] != protocolNumber(t, row[0]) {
			t.Errorf("the document has GOAWAY %s as %s", row[1], row[0])
		}
	}
	if len(rows) != len(want) {
		t.Errorf("the document has %d GOAWAY codes", len(rows))
	}
}
