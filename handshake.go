package plugwire

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

// The handshake: magic and HELLO both ways, the dialler first. The acceptor
// answers only after the dialler's magic was right. PROOF, when a secret is
// shared, follows HELLO in the same writes.

// Bounds and numbers of HELLO.
const (
	wireVersion = 1
	maxHello    = 4 << 10
	nonceLen    = 32
)

// HELLO's tags. The payload is (u16 tag, u16 length, value)*; unknown tags are ignored.
const (
	helloVersion     = 1 // u16: the highest version of the wire that the sender speaks
	helloFeature     = 2 // name: a feature that the sender offers; repeatable
	helloRequire     = 3 // name: one that it offers and cannot do without; repeatable
	helloLimits      = 4 // 6 x u32, see limits
	helloIdentity    = 5 // text, for logs
	helloNonce       = 6 // 32 random bytes
	helloAppVersions = 7 // u32 each: versions of the application's protocol
)

// features are the names of the features that this implementation has.
var features []string

// limits are what the sender of a HELLO accepts, in the order of the wire.
type limits struct {
	frame        int // bytes of one frame's payload
	message      int // bytes of one message's payload
	calls        int // slots
	oneWay       int // one-way window
	requestBytes int
	streamWindow int
}

// hello is the content of a HELLO frame.
type hello struct {
	version  int
	offered  []string
	required []string
	limits   limits
	identity string
	nonce    [nonceLen]byte
	apps     []int
}

func (c *Config) hello() *hello {
	l := &c.Limits
	h := &hello{version: wireVersion, offered: features, identity: "plugwire-go/1", apps: c.Versions,
		limits: limits{l.MaxFrame, l.MaxMessage, c.slots(), l.OneWayWindow, l.MaxRequestBytes, 0}}
	rand.Read(h.nonce[:])
	return h
}

// slots is how many calls the other side may have in flight: none where there
// is nothing to call.
func (c *Config) slots() int {
	if c.Mux == nil {
		return 0
	}
	return c.Limits.MaxCalls
}

// appendHello appends the payload of h's HELLO.
func appendHello(dst []byte, h *hello) []byte {
	field := func(tag uint16, value []byte) {
		dst = binary.LittleEndian.AppendUint16(dst, tag)
		dst = binary.LittleEndian.AppendUint16(dst, uint16(len(value)))
		dst = append(dst, value...)
	}
	field(helloVersion, binary.LittleEndian.AppendUint16(nil, uint16(h.version)))
	for _, name := range h.offered {
		field(helloFeature, []byte(name))
	}
	for _, name := range h.required {
		field(helloRequire, []byte(name))
	}
	var b []byte
	for _, n := range []int{h.limits.frame, h.limits.message, h.limits.calls, h.limits.oneWay, h.limits.requestBytes, h.limits.streamWindow} {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	field(helloLimits, b)
	field(helloIdentity, []byte(h.identity))
	field(helloNonce, h.nonce[:])
	if len(h.apps) > 0 {
		b = nil
		for _, v := range h.apps {
			b = binary.LittleEndian.AppendUint32(b, uint32(v))
		}
		field(helloAppVersions, b)
	}
	return dst
}

// parseHello reads the payload of a HELLO.
func parseHello(b []byte) (*hello, error) {
	h := new(hello)
	seen := make(map[int]bool)
	for f := (fieldReader{b: b}); len(f.b) > 0; {
		tag := f.u16()
		v := fieldReader{b: f.take(f.u16())}
		if f.bad {
			return nil, errTruncated
		}
		if seen[tag] && (tag == helloVersion || tag >= helloLimits && tag <= helloAppVersions) {
			return nil, fmt.Errorf("plugwire: HELLO has tag %d twice", tag)
		}
		seen[tag] = true
		switch tag {
		case helloVersion:
			h.version = v.u16()
		case helloFeature:
			h.offered = append(h.offered, string(v.b))
			v.b = nil
		case helloRequire:
			h.required = append(h.required, string(v.b))
			v.b = nil
		case helloLimits:
			for _, p := range []*int{&h.limits.frame, &h.limits.message, &h.limits.calls, &h.limits.oneWay, &h.limits.requestBytes, &h.limits.streamWindow} {
				n := v.u32()
				if n > maxWireLen {
					return nil, fmt.Errorf("plugwire: HELLO announces a limit of %d, above 2^31-1", n)
				}
				*p = int(n)
			}
		case helloIdentity:
			h.identity = string(v.b)
			v.b = nil
		case helloNonce:
			copy(h.nonce[:], v.take(nonceLen))
		case helloAppVersions:
			for len(v.b) > 0 && !v.bad {
				h.apps = append(h.apps, int(v.u32()&maxWireLen))
			}
		default:
			continue
		}
		if v.bad || len(v.b) > 0 {
			return nil, fmt.Errorf("plugwire: HELLO tag %d has a wrong length", tag)
		}
	}
	for _, tag := range []int{helloVersion, helloLimits, helloNonce} {
		if !seen[tag] {
			return nil, fmt.Errorf("plugwire: HELLO without tag %d", tag)
		}
	}
	return h, h.check()
}

// check refuses what this side could not work with.
func (h *hello) check() error {
	l := h.limits
	switch {
	case h.version < 1:
		return errors.New("plugwire: HELLO announces version 0")
	case l.frame < minFrame, l.message < minFrame, l.oneWay < minOneWayWindow, l.requestBytes < l.message, l.calls > maxCallsBound:
		return fmt.Errorf("plugwire: HELLO announces limits out of bounds: %+v", l)
	}
	return nil
}

// negotiate finds out what both sides can do together; the error says in words
// what they cannot.
func negotiate(ours, theirs *hello) (app int, err error) {
	for _, name := range theirs.required {
		if !slices.Contains(ours.offered, name) && !slices.Contains(ours.required, name) {
			return 0, fmt.Errorf("plugwire: the other side requires feature %q, which this side does not have", name)
		}
	}
	return commonVersion(ours.apps, theirs.apps)
}

// commonVersion returns the highest version that both sides list, or 0 when one lists none.
func commonVersion(ours, theirs []int) (int, error) {
	if len(ours) == 0 || len(theirs) == 0 {
		return 0, nil
	}
	best := -1
	for _, v := range ours {
		if v > best && slices.Contains(theirs, v) {
			best = v
		}
	}
	if best < 0 {
		return 0, &Error{Code: FailedPrecondition, Op: "handshake",
			Message: fmt.Sprintf("no common application version: this side speaks %v, the other side %v", ours, theirs)}
	}
	return best, nil
}

// handshake runs the handshake on nc within cfg.HandshakeTimeout, which includes
// whatever nc does to verify the other side. It reads nothing beyond the
// handshake. It returns the net.Conn to go on with (today always nc).
func handshake(nc net.Conn, dialler bool, cfg *Config) (net.Conn, *hello, int, error) {
	nc.SetDeadline(time.Now().Add(cfg.HandshakeTimeout))
	ours := cfg.hello()
	msg := append(make([]byte, 0, 256), wireMagic...)
	msg = appendFrameHeader(msg, FrameHeader{Type: FrameHello})
	msg = appendHello(msg, ours)
	setFrameLength(msg, len(wireMagic))
	if len(msg)-len(wireMagic)-frameHeaderLen > maxHello {
		return nil, nil, 0, errors.New("plugwire: HELLO does not fit 4096 bytes: too many Config.Versions")
	}
	if dialler {
		if _, err := nc.Write(msg); err != nil {
			return nil, nil, 0, err
		}
	}
	theirs, err := readHello(nc)
	if err != nil {
		refuse(nc, dialler, err)
		return nil, nil, 0, err
	}
	if !dialler {
		if _, err := nc.Write(msg); err != nil {
			return nil, nil, 0, err
		}
	}
	app, err := negotiate(ours, theirs)
	if err != nil {
		refuse(nc, true, err)
		return nil, nil, 0, err
	}
	nc.SetDeadline(time.Time{})
	return nc, theirs, app, nil
}

// refuse tells the other side why the handshake failed, when it is one that
// would understand: an acceptor has answered nothing before it saw the magic.
func refuse(nc net.Conn, greeted bool, reason error) {
	if _, wrong := reason.(*notPlugwire); wrong || errors.Is(reason, os.ErrDeadlineExceeded) {
		return
	}
	var b []byte
	if !greeted {
		b = append(b, wireMagic...)
	}
	nc.SetWriteDeadline(time.Now().Add(time.Second))
	nc.Write(appendGoAwayFailed(b, FailedPrecondition, reason.Error()))
}

// appendGoAwayFailed appends the frame that gives the reason for closing.
func appendGoAwayFailed(dst []byte, code Code, text string) []byte {
	text = text[:min(len(text), 1024)]
	dst = appendFrameHeader(dst, FrameHeader{Type: FrameGoAway, Code: goAwayFailed, Length: uint32(2 + len(text))})
	dst = binary.LittleEndian.AppendUint16(dst, uint16(code))
	return append(dst, text...)
}

// parseGoAwayFailed turns the other side's reason for closing into an error.
func parseGoAwayFailed(b []byte) error {
	f := fieldReader{b: b}
	code := statusOf(uint16(f.u16()))
	if f.bad {
		return errTruncated
	}
	return &Error{Code: code, Message: "the other side closed the connection: " + strings.TrimPrefix(printable(f.b, 1024), "plugwire: ")}
}

// readHello reads magic and HELLO.
func readHello(nc net.Conn) (*hello, error) {
	var head [len(wireMagic) + frameHeaderLen]byte
	if err := readMagic(nc, head[:len(wireMagic)]); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(nc, head[len(wireMagic):]); err != nil {
		return nil, handshakeReadError(err)
	}
	h, err := ParseFrameHeader(head[len(wireMagic):])
	switch {
	case err != nil:
		return nil, err
	case h.Length > maxHello:
		return nil, fmt.Errorf("plugwire: %v of %d bytes in the handshake, where %d are allowed", h.Type, h.Length, maxHello)
	case h.Type != FrameHello && h.Type != FrameGoAway:
		return nil, fmt.Errorf("plugwire: %v instead of HELLO", h.Type)
	}
	b := make([]byte, h.Length)
	if _, err := io.ReadFull(nc, b); err != nil {
		return nil, handshakeReadError(err)
	}
	if h.Type == FrameGoAway {
		return nil, parseGoAwayFailed(b)
	}
	return parseHello(b)
}

func handshakeReadError(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the other side did not finish the handshake in time: %w", err)
	case err == io.EOF, err == io.ErrUnexpectedEOF:
		return fmt.Errorf("the other side closed the connection during the handshake: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// notPlugwire says that the other side speaks something else.
type notPlugwire struct{ guess, saw string }

func (e *notPlugwire) Error() string {
	return fmt.Sprintf("plugwire: the other side does not speak plugwire: %s (it sent %s)", e.guess, e.saw)
}

// readMagic reads the magic into b. A wrong first byte decides at once; what
// else has arrived by then is only read to name the guess.
func readMagic(nc net.Conn, b []byte) error {
	n := 0
	for n < len(b) {
		m, err := nc.Read(b[n:])
		n += m
		if string(b[:n]) != wireMagic[:n] {
			saw := append(make([]byte, 0, 64), b[:n]...)
			nc.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
			m, _ := nc.Read(saw[n:cap(saw)])
			return guessProtocol(saw[:n+m])
		}
		if err != nil && n < len(b) {
			if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("the other side sent nothing: %w", err)
			}
			return handshakeReadError(err)
		}
	}
	return nil
}

// guessProtocol names the protocol whose first bytes are b.
func guessProtocol(b []byte) error {
	s := string(b)
	e := &notPlugwire{guess: "unknown protocol", saw: printable(b, 32)}
	isHTTP := slices.ContainsFunc([]string{"GET ", "POST ", "PUT ", "HEAD ", "DELETE ", "OPTIONS ", "CONNECT ", "PATCH ", "HTTP/"},
		func(p string) bool { return strings.HasPrefix(s, p) })
	switch {
	case strings.HasPrefix(s, "PRI * HTTP/2"), len(b) >= 9 && b[3] == 4 && b[4] == 0 && s[5:9] == "\x00\x00\x00\x00" && b[0] == 0:
		e.guess = "HTTP/2, perhaps gRPC"
	case isHTTP:
		e.guess = "HTTP"
	case len(b) >= 2 && b[0] >= 20 && b[0] <= 24 && b[1] == 3:
		e.guess = "TLS"
	case strings.HasPrefix(s, "SSH-"):
		e.guess = "SSH"
	case len(b) >= 3 && s[:3] == wireMagic[:3]:
		e.guess = "plugwire of another major version"
	}
	return e
}

// printable quotes at most n bytes of what a stranger sent.
func printable(b []byte, n int) string {
	cut := ""
	if len(b) > n {
		b, cut = b[:n], "..."
	}
	for _, c := range b {
		if c < ' ' || c > '~' {
			return fmt.Sprintf("%q", b) + cut
		}
	}
	return string(b) + cut
}
