//go:build !plugwire_notls

package plugwire

import (
	"crypto/tls"
	"errors"
	"net"
	"testing"
	"time"
)

// A tlsEnd is one side of a TLS connection after its handshake.
type tlsEnd struct {
	state tls.ConnectionState
	peer  *Peer
	err   error // of the handshake, or of the first read after it
}

// code and message of what went wrong, or OK.
func (e *tlsEnd) failure() (Code, string) {
	var own *Error
	if errors.As(e.err, &own) {
		return own.Code, own.Message
	}
	return CodeOf(e.err), ""
}

// handshakeTLS runs crypto/tls over loopback TCP with the settings that ours makes,
// changed by those functions that are not nil. A dialler sends a byte which the
// server sends back, so that the refusal of each reaches the other.
func handshakeTLS(t testing.TB, dialler, server *tls.Config) (d, s tlsEnd) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dialled, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s = endTLS(tls.Server(accepted, server), false)
	}()
	d = endTLS(tls.Client(dialled, dialler), true)
	<-done
	return d, s
}

func endTLS(c *tls.Conn, first bool) (e tlsEnd) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	e.err = c.Handshake()
	b := []byte{1}
	if e.err == nil && first {
		_, e.err = c.Write(b)
	}
	if e.err == nil {
		_, e.err = c.Read(b)
	}
	if e.err == nil && !first {
		_, e.err = c.Write(b)
	}
	e.state = c.ConnectionState()
	e.err = tlsError(e.state, e.err)
	return e
}

func tlsConfigOf(t testing.TB, c TLSConfig, dialler bool, host string) *tls.Config {
	t.Helper()
	cfg, err := (&Config{TLS: c}).tlsConfig(dialler, host)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestAutomaticTLSAcceptsTheTwoKeys(t *testing.T) {
	host, hostPin, err1 := newIdentity("host")
	plugin, pluginPin, err2 := newIdentity("plugin")
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	dialler, server := pinnedTLS(host, pluginPin), pinnedTLS(plugin, hostPin)
	d, s := handshakeTLS(t, tlsConfigOf(t, dialler, true, ""), tlsConfigOf(t, server, false, ""))
	if d.err != nil || s.err != nil {
		t.Fatalf("dialler: %v\nserver: %v", d.err, s.err)
	}
	p := &Peer{UID: -1, GID: -1, PID: -1, Transport: "tcp"}
	p.identify(s.state, &server)
	if !p.Verified || keyPin(p.Certificate()) != hostPin || p.SPIFFEID != "" {
		t.Errorf("the server sees %+v", p)
	}
}
