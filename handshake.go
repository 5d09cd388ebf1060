package plugwire

import (
	"context"
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
// shared, follows HELLO: see proof.go.

// Bounds and numbers of HELLO.
const (
	wireVersion = 1
	maxHello    = 4 << 10
	nonceLen    = 32

	maxFeatureName = 255
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
var features = []string{featureStreams, featureMetadata}

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
	apps     []uint32

	sent []byte // magic and HELLO frame as the sender sent them
}

func (c *Config) hello() *hello {
	l := &c.Limits
	h := &hello{version: wireVersion, offered: features, identity: "plugwire-go/1",
		limits: limits{l.MaxFrame, l.MaxMessage, c.slots(), l.OneWayWindow, l.MaxRequestBytes, l.StreamWindow}}
	for _, v := range c.Versions {
		h.apps = append(h.apps, uint32(v))
	}
	if c.secret != nil {
		h.required = []string{featureProof}
	}
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
			b = binary.LittleEndian.AppendUint32(b, v)
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
		if seen[tag] && tag != helloFeature && tag != helloRequire {
			return nil, fmt.Errorf("plugwire: HELLO has tag %d twice", tag)
		}
		seen[tag] = true
		switch tag {
		case helloVersion:
			h.version = v.u16()
		case helloFeature:
			v.bad = len(v.b) == 0 || len(v.b) > maxFeatureName
			h.offered = append(h.offered, string(v.b))
			v.b = nil
		case helloRequire:
			v.bad = len(v.b) == 0 || len(v.b) > maxFeatureName
			h.required = append(h.required, string(v.b))
			v.b = nil
		case helloLimits:
			for _, p := range []*int{&h.limits.frame, &h.limits.message, &h.limits.calls, &h.limits.oneWay, &h.limits.requestBytes, &h.limits.streamWindow} {
				n := v.u32()
				if p == &h.limits.streamWindow {
					n = min(n, maxWireLen) // judged when streams are agreed on
				}
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
				h.apps = append(h.apps, v.u32())
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
	case l.frame < minFrame, l.message < minFrame, l.oneWay < minWindow, l.requestBytes < l.message:
		return fmt.Errorf("plugwire: HELLO announces limits out of bounds: %+v", l)
	case h.has(featureStreams) && l.streamWindow < minWindow:
		return fmt.Errorf("plugwire: HELLO offers streams with a window of %d bytes", l.streamWindow)
	}
	return nil
}

// has reports whether the sender of h has a feature.
func (h *hello) has(name string) bool {
	return slices.Contains(h.offered, name) || slices.Contains(h.required, name)
}

// negotiate finds out what both sides can do together; the error says in words
// what they cannot.
func negotiate(dialler, listener *hello) (app int, err error) {
	if name := lacking(listener, dialler); name != "" {
		return 0, incompatible("the dialling side requires feature %q, which the listening side does not have", name)
	}
	if name := lacking(dialler, listener); name != "" {
		return 0, incompatible("the listening side requires feature %q, which the dialling side does not have", name)
	}
	return commonVersion(dialler.apps, listener.apps)
}

func incompatible(format string, args ...any) error {
	return &Error{Code: FailedPrecondition, Message: fmt.Sprintf(format, args...)}
}

// lacking returns a feature that other requires and h does not offer, or "".
func lacking(h, other *hello) string {
	for _, name := range other.required {
		if !h.has(name) {
			return name
		}
	}
	return ""
}

// commonVersion returns the highest version that both sides list, or 0 when one
// lists none. The reason of its error is read on both sides.
func commonVersion[V int | uint32](dialler, listener []V) (int, error) {
	if len(dialler) == 0 || len(listener) == 0 {
		return 0, nil
	}
	best, found := V(0), false
	for _, v := range dialler {
		if slices.Contains(listener, v) {
			best, found = max(best, v), true
		}
	}
	if !found {
		return 0, incompatible("no common application version: the dialling side speaks %v, the listening side %v", dialler, listener)
	}
	return int(best), nil
}

// handshake runs the handshake on nc within the deadline that its caller has set,
// which includes whatever nc does to verify the other side. It reads nothing
// beyond the handshake. It returns the net.Conn to go on with (today always nc).
func handshake(nc net.Conn, dialler bool, cfg *Config) (net.Conn, *hello, int, error) {
	ours := cfg.hello()
	msg := append(make([]byte, 0, 256), wireMagic...)
	msg = appendFrameHeader(msg, FrameHeader{Type: FrameHello})
	msg = appendHello(msg, ours)
	setFrameLength(msg, len(wireMagic))
	if len(msg)-len(wireMagic)-frameHeaderLen > maxHello {
		return nil, nil, 0, errors.New("plugwire: HELLO does not fit 4096 bytes: too many Config.Versions")
	}
	ours.sent = msg
	greeted := dialler
	if dialler {
		if err := writeAll(nc, msg); err != nil {
			return nil, nil, 0, reasonFor(nc, err)
		}
	}
	var app int
	theirs, told, err := readHello(nc)
	if err == nil && dialler {
		app, err = negotiate(ours, theirs)
	} else if err == nil {
		app, err = negotiate(theirs, ours)
	}
	if err == nil && dialler {
		told, err = proveDialler(nc, ours, theirs, cfg.secret)
	} else if err == nil {
		greeted = true
		told, err = answerDialler(nc, ours, theirs, cfg.secret)
	}
	if err != nil {
		if !told {
			refuse(nc, greeted, err)
		}
		return nil, nil, 0, err
	}
	nc.SetDeadline(time.Time{})
	return nc, theirs, app, nil
}

// proveDialler checks the listener's PROOF and sends the dialler's, if there is
// a secret. told says that the error is the reason that the other side gave.
func proveDialler(nc net.Conn, ours, theirs *hello, key *secret) (told bool, err error) {
	if key == nil {
		return false, nil
	}
	hellos := hashHellos(ours.sent, theirs.sent)
	binding, err := bindingOf(nc)
	if err != nil {
		return false, err
	}
	if told, err := checkProof(nc, key.proof(roleListener, hellos, binding)); err != nil {
		return told, err
	}
	return false, writeAll(nc, appendProof(nil, key.proof(roleDialler, hellos, binding)))
}

// answerDialler sends the listener's HELLO and, if there is a secret, its PROOF,
// and checks the dialler's.
func answerDialler(nc net.Conn, ours, theirs *hello, key *secret) (told bool, err error) {
	if key == nil {
		return false, writeAll(nc, ours.sent)
	}
	hellos := hashHellos(theirs.sent, ours.sent)
	binding, err := bindingOf(nc)
	if err != nil {
		return false, err
	}
	if err := writeAll(nc, appendProof(ours.sent, key.proof(roleListener, hellos, binding))); err != nil {
		return false, err
	}
	return checkProof(nc, key.proof(roleDialler, hellos, binding))
}

// writeAll writes b to a connection that may take less than it is given and
// return no error: not all that call themselves a net.Conn keep io.Writer's rules.
func writeAll(w io.Writer, b []byte) error {
	for len(b) > 0 {
		n, err := w.Write(b)
		if err == nil && n == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// passOn reads r to its end and writes what it reads, as io.Copy does, which for
// any two readers and writers links what copies between files in the kernel: 20 KB.
func passOn(w io.Writer, r io.Reader) {
	b := make([]byte, 16<<10)
	for {
		n, err := r.Read(b)
		if writeAll(w, b[:n]) != nil || err != nil {
			return
		}
	}
}

// bindingOf returns what ties a proof to the encryption of nc, if it has one.
func bindingOf(nc net.Conn) ([]byte, error) {
	if s, ok := nc.(sealer); ok {
		return s.binding()
	}
	return nil, nil
}

// reasonFor finds out why the other side took nothing of what was sent: it may
// have said so, or said something in another protocol, before it closed.
func reasonFor(nc net.Conn, err error) error {
	_, told, reason := readHello(nc)
	if _, wrong := reason.(*notPlugwire); told || wrong {
		return reason
	}
	return err
}

// tlsHandshakeRecord is the first byte of a TLS connection.
const tlsHandshakeRecord = 22

// refuseTimeout is how long a peer that is not allowed may take to learn that.
const refuseTimeout = time.Second

// refuse tells the other side why the handshake failed, when it is one that
// would understand: an acceptor has answered nothing before it saw the magic.
// It stays within the handshake's deadline and refuseTimeout.
func refuse(nc net.Conn, greeted bool, reason error) {
	if _, wrong := reason.(*notPlugwire); wrong || errors.Is(reason, os.ErrDeadlineExceeded) {
		return
	}
	code := CodeOf(reason)
	if code == Unknown {
		code = FailedPrecondition
	}
	var b []byte
	if !greeted {
		b = append(b, wireMagic...)
	}
	if err := writeAll(nc, appendGoAwayFailed(b, code, reason.Error())); err != nil {
		return
	}
	// To close with unread bytes would destroy the reason on its way.
	if half, ok := nc.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		nc.SetReadDeadline(time.Now().Add(refuseTimeout))
		passOn(io.Discard, nc)
	}
}

// refusePeer refuses who may not be there. An acceptor says so only to a
// dialler that has sent the magic, or begun with TLS where that is wanted, and
// reads what came with it, since to close with unread bytes would destroy the
// answer. It does not wait for long.
func refusePeer(ctx context.Context, nc net.Conn, dialler bool, cfg *Config, reason error) {
	nc.SetDeadline(time.Now().Add(min(cfg.HandshakeTimeout, refuseTimeout)))
	defer context.AfterFunc(ctx, func() { nc.Close() })()
	if !dialler {
		var b [len(wireMagic) + frameHeaderLen + maxHello]byte
		n, _ := io.ReadAtLeast(nc, b[:], len(wireMagic))
		isTLS := cfg.hasTLS() && n > 0 && b[0] == tlsHandshakeRecord
		if n < len(wireMagic) || string(b[:len(wireMagic)]) != wireMagic && !isTLS {
			return
		}
	}
	refuse(nc, false, reason)
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
	return &Error{Code: code, told: true, Message: "the other side closed the connection: " + strings.TrimPrefix(printable(f.b, 1024), "plugwire: ")}
}

// readHello reads magic and HELLO; told says that the error is the reason that
// the other side gave instead.
func readHello(nc net.Conn) (theirs *hello, told bool, err error) {
	var magic [len(wireMagic)]byte
	if err := readMagic(nc, magic[:]); err != nil {
		return nil, false, err
	}
	h, b, err := readOpeningFrame(nc, FrameHello)
	if err != nil {
		return nil, false, err
	}
	if h.Type == FrameGoAway {
		return nil, true, parseGoAwayFailed(b)
	}
	if theirs, err = parseHello(b); err != nil {
		return nil, false, err
	}
	theirs.sent = append(appendFrameHeader([]byte(wireMagic), h), b...)
	return theirs, false, nil
}

// readOpeningFrame reads a frame of the handshake: one of the type wanted, or
// GOAWAY failed in its place.
func readOpeningFrame(nc net.Conn, want FrameType) (FrameHeader, []byte, error) {
	var head [frameHeaderLen]byte
	if _, err := io.ReadFull(nc, head[:]); err != nil {
		return FrameHeader{}, nil, handshakeReadError(err)
	}
	h, err := ParseFrameHeader(head[:])
	switch {
	case err != nil:
		return h, nil, err
	case h.Length > maxHello:
		return h, nil, fmt.Errorf("plugwire: %v of %d bytes in the handshake, where %d are allowed", h.Type, h.Length, maxHello)
	case h.Type != want && (h.Type != FrameGoAway || h.Code != goAwayFailed):
		return h, nil, fmt.Errorf("plugwire: %v instead of %v", h.Type, want)
	}
	b := make([]byte, h.Length)
	if _, err := io.ReadFull(nc, b); err != nil {
		return h, nil, handshakeReadError(err)
	}
	return h, b, nil
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
