//go:build !plugwire_notls

package plugwire

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// This file runs crypto/tls over a connection. During the handshakes a tlsConn
// reads and writes like any net.Conn. Afterwards crypto/tls only turns batches
// into records and records into bytes, in memory, and it is the Conn that makes
// the system calls, as it does without TLS: one for many records, by whoever is
// there, and without waiting.

// secure runs the TLS handshake over nc, within ctx and nc's deadline, when
// Config.TLS is set, and takes in who the other side is. host is that of the dialled address,
// or "". The other side is told what it is refused for.
func (c *Config) secure(ctx context.Context, nc net.Conn, dialler bool, host string, peer *Peer) (net.Conn, error) {
	if !c.hasTLS() {
		return nc, nil
	}
	settings, err := c.tlsConfig(dialler, host)
	if err != nil {
		return nil, err
	}
	t := &tlsConn{Conn: nc, dialler: dialler}
	records := (*tlsRecords)(t)
	if dialler {
		t.tls = tls.Client(records, settings)
	} else {
		ctx, cancel := context.WithTimeout(ctx, c.HandshakeTimeout) // nc's deadline has no turn end
		defer cancel()
		t.takeTurns(ctx, settings)
		t.tls = tls.Server(records, settings)
	}
	err = t.tls.Handshake()
	t.endTurns()
	if err != nil {
		return nil, t.refusal(err)
	}
	peer.identify(t.tls.ConnectionState(), &c.TLS)
	return t, nil
}

// A tlsConn is a connection that crypto/tls encrypts. It has, beside net.Conn's
// methods, those of sealer.
type tlsConn struct {
	net.Conn // below: addresses, deadlines, Close
	tls      *tls.Conn
	dialler  bool
	turn     *handshakeTurn // nil in what needs none
	live     bool           // a Conn makes the system calls

	// Received records that crypto/tls has not taken. They belong to who reads.
	in     *readBuffer // nil while there are none
	r, w   int
	record int // bytes that are left of the record at r

	mu      sync.Mutex
	out     []byte // records that were made while live and not handed out
	sealing bool   // by seal; others are answers to what was received
	flooded bool   // with what has to be answered
}

// maxAnswers is how many bytes of answers may wait for something to be sent. The
// other side has one made by each KeyUpdate, which TLS does not limit.
const maxAnswers = 16 << 10

var errAnswers = errors.New("plugwire: too many KeyUpdates")

// Read reads during the handshake.
func (t *tlsConn) Read(b []byte) (int, error) {
	n, err := t.tls.Read(b)
	if err != nil && n == 0 {
		err = t.refusal(err)
	}
	return n, err
}

// Write writes during the handshake.
func (t *tlsConn) Write(b []byte) (int, error) { return t.tls.Write(b) }

// CloseWrite says that nothing follows, in TLS and in the connection below, if
// that can be half closed. A Conn calls it when its batches are written and no
// other will be.
func (t *tlsConn) CloseWrite() error {
	half, ok := t.Conn.(interface{ CloseWrite() error })
	if !ok {
		return nil
	}
	err := t.tls.CloseWrite()
	if b := t.take(); err == nil && len(b) > 0 {
		t.Conn.SetWriteDeadline(time.Now().Add(refuseTimeout))
		err = writeAll(t.Conn, b)
	}
	return errors.Join(err, half.CloseWrite())
}

func (t *tlsConn) below() net.Conn { return t.Conn }

// binding is what ties a proof to this connection: RFC 9266.
func (t *tlsConn) binding() ([]byte, error) {
	cs := t.tls.ConnectionState()
	return cs.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
}

func (t *tlsConn) goLive() { t.live = true }

// seal implements batch.Config's Seal.
func (t *tlsConn) seal(dst, plain []byte) ([]byte, error) {
	t.mu.Lock()
	t.out = append(dst, t.out...) // what crypto/tls had to say by itself comes first
	t.sealing = true
	t.mu.Unlock()
	_, err := t.tls.Write(plain)
	return t.take(), err
}

// take returns the records that were made, and forgets them.
func (t *tlsConn) take() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.out
	t.out, t.sealing = nil, false
	return b
}

// space returns where to read further records to.
func (t *tlsConn) space() []byte {
	if t.in == nil {
		t.in = readBuffers.Get().(*readBuffer)
	}
	if t.r > 0 {
		t.w = copy(t.in[:], t.in[t.r:t.w])
		t.r = 0
	}
	return t.in[t.w:]
}

// received says how many bytes were read to space.
func (t *tlsConn) received(n int) {
	t.w += n
	t.release()
}

// release gives back an empty buffer, for an idle connection to hold none.
func (t *tlsConn) release() {
	if t.in != nil && t.r == t.w {
		readBuffers.Put(t.in)
		t.in, t.r, t.w = nil, 0, 0
	}
}

// unseal fills dst with what the records that were received hold.
func (t *tlsConn) unseal(dst []byte) (n int, err error) {
	for n < len(dst) && err == nil {
		var m int
		m, err = t.tls.Read(dst[n:])
		n += m
	}
	if err == errNoRecord {
		err = nil
	}
	t.mu.Lock()
	if t.flooded { // crypto/tls notices when it writes, or finds no sense in what it reads
		err = errAnswers
	}
	t.mu.Unlock()
	t.release()
	if n > 0 {
		return n, nil // an error comes again
	}
	return 0, err
}

// tlsRecords is what crypto/tls sees of a tlsConn: the connection below, or
// memory when the Conn makes the system calls. Its deadlines are none of
// crypto/tls's business, and neither is when it is closed.
type tlsRecords tlsConn

func (r *tlsRecords) LocalAddr() net.Addr              { return r.Conn.LocalAddr() }
func (r *tlsRecords) RemoteAddr() net.Addr             { return r.Conn.RemoteAddr() }
func (r *tlsRecords) Close() error                     { return nil }
func (r *tlsRecords) SetDeadline(time.Time) error      { return nil }
func (r *tlsRecords) SetReadDeadline(time.Time) error  { return nil }
func (r *tlsRecords) SetWriteDeadline(time.Time) error { return nil }

func (r *tlsRecords) Write(b []byte) (int, error) {
	if !r.live {
		r.turn.end()
		if err := writeAll(r.Conn, b); err != nil { // crypto/tls does not look at how many were taken
			return 0, err
		}
		return len(b), nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.sealing && len(r.out) > maxAnswers {
		r.flooded = true
		return 0, errAnswers
	}
	r.out = append(r.out, b...)
	return len(b), nil
}

const recordHeaderLen = 5

// Read never gives bytes of two records, so that crypto/tls takes no more than it
// needs, and stops before what is no record: the reason that is given in plain
// where TLS has failed.
func (r *tlsRecords) Read(b []byte) (int, error) {
	if r.record == 0 {
		for r.w-r.r < recordHeaderLen {
			if r.w > r.r && r.in[r.r] == wireMagic[0] {
				return 0, errPlain
			}
			if err := r.fill(); err != nil {
				return 0, err
			}
		}
		head := r.in[r.r:]
		if head[0] == wireMagic[0] {
			return 0, errPlain
		}
		r.record = recordHeaderLen + int(binary.BigEndian.Uint16(head[3:]))
	}
	for r.w == r.r {
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(b, r.in[r.r:min(r.w, r.r+r.record)])
	r.r += n
	r.record -= n
	return n, nil
}

// fill reads more of the connection below, unless that is for the Conn to do.
func (r *tlsRecords) fill() error {
	if r.live {
		return errNoRecord
	}
	r.turn.end()
	t := (*tlsConn)(r)
	n, err := r.Conn.Read(t.space())
	t.received(n)
	if n > 0 {
		err = r.turn.begin()
	}
	return err
}

// noRecord is an error that crypto/tls passes on and forgets, as net.Error
// allows it to: there will be more.
type noRecord struct{}

func (noRecord) Error() string   { return "plugwire: no whole record has been received" }
func (noRecord) Timeout() bool   { return false }
func (noRecord) Temporary() bool { return true }

var errNoRecord error = noRecord{}

// errPlain says that the other side goes on without TLS.
var errPlain = errors.New("plugwire: not a TLS record")

// refusal makes the error of a TLS handshake, or of the first read after it, from
// what crypto/tls says: the other side's reason if it gives one, else what is
// wrong with the other side, which it is then told.
func (t *tlsConn) refusal(err error) error {
	if err == errNoRecord || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	var op *net.OpError
	remote := errors.As(err, &op) && op.Op == "remote error"
	if remote || errors.Is(err, errPlain) {
		if told := t.reason(); told != nil {
			return told
		}
	}
	if errors.Is(err, errPlain) && !t.dialler {
		err = refused("the dialling side speaks plugwire without TLS, which the listening side requires", nil)
	} else {
		err = tlsError(t.tls.ConnectionState(), err)
	}
	var e *Error
	if !errors.As(err, &e) && t.dialler && t.tls.ConnectionState().Version == 0 {
		return &Error{Code: Unavailable, Message: "the other side closed the connection in place of an answer to TLS", Err: err,
			Hint: "is Config.TLS set on the other side too?"}
	}
	if e != nil && remote {
		e.told = true
	} else if e != nil {
		refuse(t.Conn, false, &Error{Code: e.Code, Message: e.Message})
	}
	return err
}

// reason returns the reason that the other side gives in plain, if it does.
func (t *tlsConn) reason() error {
	t.Conn.SetReadDeadline(time.Now().Add(refuseTimeout))
	_, told, err := readHello(plainAfterTLS{t})
	if told {
		return err
	}
	return nil
}

// plainAfterTLS reads what follows the last record.
type plainAfterTLS struct{ *tlsConn }

func (p plainAfterTLS) Read(b []byte) (int, error) {
	if p.r == p.w {
		if err := (*tlsRecords)(p.tlsConn).fill(); err != nil {
			return 0, err
		}
	}
	n := copy(b, p.in[p.r:p.w])
	p.r += n
	return n, nil
}
