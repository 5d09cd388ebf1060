package plugwire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// This file owns the wire format: the frame header, the frame types and flags,
// and the layout of each payload that the protocol itself reads. It needs
// nothing of the rest of the package. docs/PROTOCOL.md says the same in prose,
// and testdata/golden.txt holds both to the byte.

// frameHeaderLen is the size of every frame's header.
//
//	0        4      5       6        8            12
//	| length | type | flags | code   | id         | payload ...
//	| u32    | u8   | u8    | u16    | u32        | length bytes
//
// All integers are little-endian. length counts the payload only.
const frameHeaderLen = 12

// wireMagic opens a connection in each direction. Its first byte is neither
// ASCII nor a TLS record type (20 to 24), so that no text protocol and no TLS
// peer can be mistaken for this one. The last byte is the wire's major version.
const wireMagic = "\xd7PW\x01"

// FrameType says what a frame is. The bit 0x80 marks the types that a receiver
// which does not know them skips; any other unknown type closes the connection.
type FrameType uint8

// The frame types. "Slot" is the call or stream that the header's id names.
const (
	FrameHello   FrameType = 0x01 // versions, features, limits, identity, nonce; tag-length-value
	FrameProof   FrameType = 0x02 // 32 B HMAC-SHA256 over both sides' HELLO
	FrameMethods FrameType = 0x03 // (u16 number, u8 length, name)*
	FrameSwitch  FrameType = 0x04 // code: status; the last frame before shared memory
	FrameCall    FrameType = 0x05 // code: method number; a request in slot id
	FrameReply   FrameType = 0x06 // the good ending of the call in slot id
	FrameError   FrameType = 0x07 // code: status; the other ending: u16 length, text, detail
	FrameCancel  FrameType = 0x08 // the opener no longer wants slot id; the ending still comes
	FrameNotify  FrameType = 0x09 // code: method number; a one-way message, id 0
	FrameOpen    FrameType = 0x0a // code: method number; a stream in slot id
	FrameData    FrameType = 0x0b // a message of the stream in slot id
	FrameClose   FrameType = 0x0c // code: status; half-close, or with LAST the end of the stream
	FrameReset   FrameType = 0x0d // code: status; the stream is given up
	FrameCredit  FrameType = 0x0e // id 0: u64 bytes, u64 messages, cumulative (empty: asks for it); slot: u32 bytes more
	FrameAbort   FrameType = 0x0f // the message begun in slot id will not be completed
	FramePing    FrameType = 0x10 // 8 B, returned in PONG
	FramePong    FrameType = 0x11 // 8 B, of the latest PING
	FrameGoAway  FrameType = 0x12 // code: 1 drain, 2 ack, 3 done, 4 failed (u16 status, text)

	// FrameSkippable is the bit of the types that may be skipped unknown.
	FrameSkippable FrameType = 0x80
)

var frameTypeNames = [...]string{
	FrameHello: "HELLO", FrameProof: "PROOF", FrameMethods: "METHODS", FrameSwitch: "SWITCH",
	FrameCall: "CALL", FrameReply: "REPLY", FrameError: "ERROR", FrameCancel: "CANCEL",
	FrameNotify: "NOTIFY", FrameOpen: "OPEN", FrameData: "DATA", FrameClose: "CLOSE",
	FrameReset: "RESET", FrameCredit: "CREDIT", FrameAbort: "ABORT",
	FramePing: "PING", FramePong: "PONG", FrameGoAway: "GOAWAY",
}

// String returns the type's name as docs/PROTOCOL.md writes it.
func (t FrameType) String() string {
	if t.known() {
		return frameTypeNames[t]
	}
	return fmt.Sprintf("type(0x%02x)", uint8(t))
}

func (t FrameType) known() bool {
	return t != 0 && int(t) < len(frameTypeNames)
}

// FrameFlags modify a frame. A flag that the type does not have closes the connection.
type FrameFlags uint8

// The flags.
const (
	FlagBegin    FrameFlags = 0x01 // the first of several frames of one message; leads with the total (u32)
	FlagMore     FrameFlags = 0x02 // further frames of the message (of METHODS: of the table) follow
	FlagMeta     FrameFlags = 0x04 // metadata precedes the payload: u16 length, then that many bytes
	FlagDeadline FrameFlags = 0x08 // the time left precedes the payload: u64 nanoseconds
	FlagBack     FrameFlags = 0x10 // sent by the acceptor of the slot that id names
	FlagLast     FrameFlags = 0x20 // the last frame of a stream, sent by its acceptor
	FlagNotRun   FrameFlags = 0x40 // of ERROR and RESET: nothing ran
)

var frameFlagNames = [...]string{"BEGIN", "MORE", "META", "DEADLINE", "BACK", "LAST", "NOTRUN", "0x80"}

// String returns the names of the flags that are set, joined by "|", or "0".
func (f FrameFlags) String() string {
	var names []string
	for i, name := range frameFlagNames {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	if names == nil {
		return "0"
	}
	return strings.Join(names, "|")
}

// frameFlagsAllowed is the flag table of docs/PROTOCOL.md.
var frameFlagsAllowed = [len(frameTypeNames)]FrameFlags{
	FrameMethods: FlagMore,
	FrameCall:    FlagBegin | FlagMore | FlagMeta | FlagDeadline,
	FrameReply:   FlagBegin | FlagMore | FlagMeta | FlagBack,
	FrameError:   FlagBack | FlagNotRun | FlagMeta,
	FrameNotify:  FlagBegin | FlagMore | FlagMeta,
	FrameOpen:    FlagMeta | FlagDeadline | FlagBack,
	FrameData:    FlagBegin | FlagMore | FlagMeta | FlagBack,
	FrameClose:   FlagMeta | FlagBack | FlagLast,
	FrameReset:   FlagMeta | FlagBack | FlagLast | FlagNotRun,
	FrameCredit:  FlagBack,
	FrameAbort:   FlagBack,
}

// GOAWAY codes.
const (
	goAwayDrain  = 1 // open nothing more towards the sender
	goAwayAck    = 2 // the sender opens nothing more; answers drain
	goAwayDone   = 3 // no slot is in use; the sender closes
	goAwayFailed = 4 // the sender closes because of an error: u16 status, text
)

// FrameHeader is the fixed header of a frame.
type FrameHeader struct {
	Length uint32     // payload bytes that follow the header
	Type   FrameType  // what the frame is
	Flags  FrameFlags // see the Flag constants
	Code   uint16     // method number or status, by type
	ID     uint32     // slot, or 0
}

// AppendBinary appends the 12 bytes of h to dst. The error is always nil; it is
// there for encoding.BinaryAppender. Source of the layout: docs/PROTOCOL.md.
func (h FrameHeader) AppendBinary(dst []byte) ([]byte, error) {
	return appendFrameHeader(dst, h), nil
}

func appendFrameHeader(dst []byte, h FrameHeader) []byte {
	return appendHeader(dst, h.Type, h.Flags, h.Code, h.ID, int(h.Length))
}

// appendHeader is appendFrameHeader of a header that stays in registers.
func appendHeader(dst []byte, t FrameType, flags FrameFlags, code uint16, id uint32, length int) []byte {
	dst = append(dst, make([]byte, frameHeaderLen)...)
	putHeader(dst[len(dst)-frameHeaderLen:], t, flags, code, id, length)
	return dst
}

// putHeader writes a header to the first 12 bytes of b.
func putHeader(b []byte, t FrameType, flags FrameFlags, code uint16, id uint32, length int) {
	binary.LittleEndian.PutUint32(b[8:], id)
	binary.LittleEndian.PutUint64(b, uint64(uint32(length))|uint64(t)<<32|uint64(flags)<<40|uint64(code)<<48)
}

// decodeFrameHeader reads a header from the first 12 bytes of b without judging it.
func decodeFrameHeader(b []byte) FrameHeader {
	_ = b[frameHeaderLen-1]
	return FrameHeader{
		Length: binary.LittleEndian.Uint32(b),
		Type:   FrameType(b[4]),
		Flags:  FrameFlags(b[5]),
		Code:   binary.LittleEndian.Uint16(b[6:]),
		ID:     binary.LittleEndian.Uint32(b[8:]),
	}
}

// ParseFrameHeader reads a header from the first 12 bytes of b. It returns
// io.ErrUnexpectedEOF when b is shorter, and an error that names the type or
// flag when the header is one that this version of the protocol must refuse.
// It does not judge the length: that limit is the receiver's.
func ParseFrameHeader(b []byte) (FrameHeader, error) {
	if len(b) < frameHeaderLen {
		return FrameHeader{}, io.ErrUnexpectedEOF
	}
	h := decodeFrameHeader(b)
	return h, h.check()
}

// check reports a type or flag that the protocol does not have.
func (h *FrameHeader) check() error {
	if int(h.Type) < len(frameFlagsAllowed) && h.Flags&^frameFlagsAllowed[h.Type] == 0 && h.Type != 0 {
		return nil
	}
	switch {
	case h.Type&FrameSkippable != 0:
		return nil
	case !h.Type.known():
		return fmt.Errorf("plugwire: unknown frame %v", h.Type)
	default:
		return fmt.Errorf("plugwire: %v frame with flag %v", h.Type, h.Flags&^frameFlagsAllowed[h.Type])
	}
}

// errFrameTooLong is what FrameReader's error wraps when a frame's length is over the limit.
var errFrameTooLong = errors.New("frame longer than the limit")

// A FrameReader reads frames from a byte stream, for programs that want the
// framing alone. It keeps one buffer, which grows only when it is full of bytes
// that have arrived, by as many again or 32 KiB, so that a length which lies
// costs nothing. It is not safe for concurrent use.
type FrameReader struct {
	r    io.Reader
	max  int
	head [frameHeaderLen]byte
	buf  []byte
	err  error // once the place in the stream is lost
}

// frameReadStep is how much FrameReader allocates for bytes that have not arrived yet.
const frameReadStep = 32 << 10

// NewFrameReader returns a reader of the frames in r whose payloads are at most
// maxPayload bytes; the protocol has none of 2^31 bytes or more. It makes two or
// more reads for each frame: give it a bufio.Reader when reads of r are expensive.
func NewFrameReader(r io.Reader, maxPayload int) *FrameReader {
	return &FrameReader{r: r, max: min(max(maxPayload, 0), maxWireLen)}
}

// ReadFrame returns the next frame. The payload is valid until the next call.
// Frames of unknown types that may be skipped are returned like any other. The
// error is io.EOF at the end between two frames, io.ErrUnexpectedEOF inside
// one; a frame over the limit or with an unknown type or flag is an error
// before any of its payload is read. After an error inside a frame every call
// returns that error, since nobody knows where the next frame begins.
func (f *FrameReader) ReadFrame() (FrameHeader, []byte, error) {
	if f.err != nil {
		return FrameHeader{}, nil, f.err
	}
	if n, err := io.ReadFull(f.r, f.head[:]); err != nil {
		if n > 0 {
			f.err = err
		}
		return FrameHeader{}, nil, err
	}
	h, err := ParseFrameHeader(f.head[:])
	if err == nil && uint64(h.Length) > uint64(f.max) {
		err = fmt.Errorf("plugwire: %v of %d bytes: %w of %d", h.Type, h.Length, errFrameTooLong, f.max)
	}
	if err == nil {
		err = f.readPayload(int(h.Length))
	}
	if err != nil {
		f.err = err
		return h, nil, err
	}
	return h, f.buf[:h.Length], nil
}

// readPayload reads n bytes into buf, which grows only when it is full.
func (f *FrameReader) readPayload(n int) error {
	for got := 0; got < n; {
		if got == len(f.buf) {
			ahead := max(got, min(n-got, frameReadStep))
			grown := make([]byte, got+min(ahead, f.max-got))
			copy(grown, f.buf)
			f.buf = grown
		}
		end := min(n, len(f.buf))
		if _, err := io.ReadFull(f.r, f.buf[got:end]); err == io.EOF {
			return io.ErrUnexpectedEOF
		} else if err != nil {
			return err
		}
		got = end
	}
	return nil
}

// A FrameWriter writes frames to a byte stream, for programs that want the
// framing alone. Frames gather in a buffer that is written when it holds
// 64 KiB or more and by Flush. It is not safe for concurrent use.
type FrameWriter struct {
	w   io.Writer
	buf []byte
	err error
}

// frameWriteSize is how much FrameWriter gathers.
const frameWriteSize = 64 << 10

// NewFrameWriter returns a writer of frames to w.
func NewFrameWriter(w io.Writer) *FrameWriter {
	return &FrameWriter{w: w}
}

// WriteFrame adds a frame to the buffer: h with its Length set to that of the
// payload, then the payload, which is copied. After a failed write every call
// returns that error.
func (f *FrameWriter) WriteFrame(h FrameHeader, payload []byte) error {
	if f.err != nil {
		return f.err
	}
	if uint64(len(payload)) > maxWireLen {
		return fmt.Errorf("plugwire: %v of %d bytes: %w of %d", h.Type, len(payload), errFrameTooLong, maxWireLen)
	}
	h.Length = uint32(len(payload))
	f.buf = append(appendFrameHeader(f.buf, h), payload...)
	if len(f.buf) >= frameWriteSize {
		return f.Flush()
	}
	return nil
}

// Flush writes what is buffered.
func (f *FrameWriter) Flush() error {
	if f.err != nil || len(f.buf) == 0 {
		return f.err
	}
	n, err := f.w.Write(f.buf)
	if err == nil && n < len(f.buf) {
		err = io.ErrShortWrite
	}
	f.err = err
	f.buf = f.buf[:0]
	return err
}

// maxWireLen bounds every length and limit on the wire: a signed 32-bit count.
const maxWireLen = 1<<31 - 1

// errTruncated reports a payload that is shorter than its own fields say.
var errTruncated = errors.New("plugwire: payload shorter than its fields")

// A fieldReader cuts fields from the front of a payload. After a field that is
// not there in whole, bad is true and every further field is zero.
type fieldReader struct {
	b   []byte
	bad bool
}

func (f *fieldReader) take(n int) []byte {
	if f.bad || n < 0 || n > len(f.b) { // below zero: a u32 made an int on 32 bits
		f.bad = true
		return nil
	}
	b := f.b[:n:n]
	f.b = f.b[n:]
	return b
}

func (f *fieldReader) u8() int {
	if b := f.take(1); b != nil {
		return int(b[0])
	}
	return 0
}

func (f *fieldReader) u16() int {
	if b := f.take(2); b != nil {
		return int(binary.LittleEndian.Uint16(b))
	}
	return 0
}

func (f *fieldReader) u32() uint32 {
	if b := f.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (f *fieldReader) u64() uint64 {
	if b := f.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// appendErrorPayload lays out the payload of ERROR: u16 length, text, detail.
func appendErrorPayload(dst []byte, text string, detail []byte) []byte {
	text = text[:min(len(text), 1<<16-1)]
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(text)))
	dst = append(dst, text...)
	return append(dst, detail...)
}

// parseErrorPayload is the reverse of appendErrorPayload; the results alias b.
func parseErrorPayload(b []byte) (text, detail []byte, err error) {
	f := fieldReader{b: b}
	text = f.take(f.u16())
	if f.bad {
		return nil, nil, errTruncated
	}
	return text, f.b, nil
}

// appendCreditPayload lays out the payload of CREDIT for id 0.
func appendCreditPayload(dst []byte, bytes, messages uint64) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, bytes)
	return binary.LittleEndian.AppendUint64(dst, messages)
}
