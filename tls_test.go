//go:build !plugwire_notls

package plugwire

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// A tlsEnd is one side of a TLS connection after its handshake.
type tlsEnd struct {
	state tls.ConnectionState
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

// handshakeTLS runs crypto/tls over loopback TCP with the settings of both sides.
// The server sends a byte and gets it back, so that the refusal of each reaches
// the other.
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
		s = endTLS(accepted, tls.Server(accepted, server), false)
	}()
	d = endTLS(dialled, tls.Client(dialled, dialler), true)
	<-done
	return d, s
}

func endTLS(nc net.Conn, c *tls.Conn, readFirst bool) (e tlsEnd) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	b := []byte{1}
	do := []func() error{c.Handshake,
		func() error { _, err := c.Write(b); return err },
		func() error { _, err := c.Read(b); return err }}
	if readFirst {
		do[1], do[2] = do[2], do[1]
	}
	for _, f := range do {
		if e.err = f(); e.err != nil { // closing with bytes unread would destroy the alert
			nc.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, nc)
			break
		}
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
