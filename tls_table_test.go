//go:build !plugwire_notls

package plugwire

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"
)

// A tableSide is one side of a connection in the certificate table.
type tableSide struct {
	TLSConfig
	edit func(*tls.Config) // afterwards, for what this package never does
}

// runTable connects one side to the other, which names how the dialler is to
// be set up.
func runTable(t *testing.T, dialler, server *tableSide) (d, s tlsEnd) {
	t.Helper()
	dc, sc := tlsConfigOf(t, dialler.TLSConfig, true, testName), tlsConfigOf(t, server.TLSConfig, false, "")
	if dialler.edit != nil {
		dialler.edit(dc)
	}
	if server.edit != nil {
		server.edit(sc)
	}
	return handshakeTLS(t, dc, sc)
}

// THREATS.md, the certificate table: the side that must refuse says why, in words
// that are safe to tell the other side, and the other side learns that it is refused.
func TestT13CertificateTable(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	withCert := func(edit func(*x509.Certificate)) func(*tableSide, *tableSide) {
		return func(bad, _ *tableSide) { bad.SetCertificate(ca.issue(t, edit)) }
	}
	client := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }
	server := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }
	rows := []struct {
		name                string
		asServer, asDialler bool // which side the bad one is
		arrange             func(bad, judge *tableSide)
		want                string // Error.Message; "" for none
		reason              any    // what errors.As must find; nil: nothing
	}{
		{"valid", true, true, func(_, _ *tableSide) {}, "", nil},
		{"expired", true, true, withCert(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }),
			"the certificate has expired", nil},
		{"not yet valid", true, true, withCert(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }),
			"the certificate is not valid yet", nil},
		{"wrong CA", true, true, func(bad, _ *tableSide) { bad.SetCertificate(other.issue(t, nil)) },
			"the certificate is signed by an unknown authority", new(x509.UnknownAuthorityError)},
		{"self-signed with the same name", true, true, func(bad, _ *tableSide) { bad.SetCertificate(selfSigned(t, nil)) },
			"the certificate is signed by itself, not by a known authority", new(x509.UnknownAuthorityError)},
		{"right CA, wrong pin", true, true, func(bad, judge *tableSide) {
			judge.TLSConfig = pinnedTLS(ptr(ca.issue(t, nil)), keyPin(ca.issue(t, nil).Leaf))
		}, "the key is not the pinned one", nil},
		{"client certificate used as server", true, false, withCert(client),
			"the certificate is not for use as a server", new(x509.CertificateInvalidError)},
		{"server-only usage as client", false, true, withCert(server),
			"the certificate is not for use as a client", new(x509.CertificateInvalidError)},
		{"no client certificate", false, true, func(bad, _ *tableSide) {
			bad.SetCertificate(tls.Certificate{})
		}, "no certificate was sent", nil},
		{"CA:true leaf", true, true, withCert(func(c *x509.Certificate) { c.IsCA = true }),
			"the certificate is of an authority (CA:true)", nil},
		{"TLS 1.2 peer", true, true, func(bad, _ *tableSide) {
			bad.edit = func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }
		}, "the other side does not speak TLS 1.3", nil},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			run := func(badDials bool) {
				bad := &tableSide{TLSConfig: ca.trusting(ca.issue(t, nil))}
				judge := &tableSide{TLSConfig: ca.trusting(ca.issue(t, nil))}
				row.arrange(bad, judge)
				var judged, told tlsEnd
				if badDials {
					told, judged = runTable(t, bad, judge)
				} else {
					judged, told = runTable(t, judge, bad)
				}
				if row.want == "" {
					if judged.err != nil || told.err != nil {
						t.Errorf("bad one dials %v: %v, %v", badDials, judged.err, told.err)
					}
					return
				}
				checkRefusal(t, judged.err, row.want, row.reason)
				if code, message := told.failure(); code != Unauthenticated || message == "" {
					t.Errorf("bad one dials %v: the refused side sees %v", badDials, told.err)
				}
			}
			if row.asServer {
				run(false)
			}
			if row.asDialler {
				run(true)
			}
		})
	}
	t.Run("rotated away with resumption", func(t *testing.T) { resumeAfterRotation(t, nil) })
}

func ptr[T any](v T) *T { return &v }

// checkRefusal checks an error of the refusing side.
func checkRefusal(t *testing.T, err error, want string, reason any) {
	t.Helper()
	var own *Error
	if !errors.As(err, &own) || own.Code != Unauthenticated || own.Message != want {
		t.Errorf("got %v, want Unauthenticated: %s", err, want)
		return
	}
	for _, secret := range []string{"secret-subject", "5ec2e7", testName, "authority\"", "example.org"} {
		if strings.Contains(own.Message, secret) || strings.Contains(own.Hint, secret) {
			t.Errorf("the other side would be told %q: %s", secret, own.Message)
		}
	}
	if reason != nil && !errors.As(err, reason) {
		t.Errorf("there is no %T in %v", reason, err)
	}
}

// Who has been rotated away must not come back by resuming a session of before.
func TestT14RotatedPeerDoesNotResume(t *testing.T) {
	t.Run("no tickets", func(t *testing.T) { resumeAfterRotation(t, nil) })
	// The second defence alone: a resumed session is verified like any other.
	t.Run("verified when resumed", func(t *testing.T) {
		resumeAfterRotation(t, func(c *tls.Config) { c.SessionTicketsDisabled = false })
	})
}

// resumeAfterRotation connects a client that collects session tickets, exchanges
// the authority that the server trusts, and lets the client come back. edit
// changes the server's settings.
func resumeAfterRotation(t *testing.T, edit func(*tls.Config)) {
	ca, next := newTestCA(t), newTestCA(t)
	trusted := roots(ca)
	var server TLSConfig
	server.SetCertificate(ca.issue(t, nil))
	server.SetRoots(func() (*x509.CertPool, error) { return trusted() })
	sc := tlsConfigOf(t, server, false, "")
	if edit != nil {
		edit(sc)
	}
	dc := tlsConfigOf(t, ca.trusting(ca.issue(t, nil)), true, testName)
	dc.SessionTicketsDisabled, dc.ClientSessionCache = false, tls.NewLRUClientSessionCache(8)
	for i := range 2 {
		d, s := handshakeTLS(t, dc, sc)
		if d.err != nil || s.err != nil {
			t.Fatalf("before the rotation: %v, %v", d.err, s.err)
		}
		if want := edit != nil && i == 1; d.state.DidResume != want || s.state.DidResume != want {
			t.Fatalf("connection %d: resumed %v and %v, want %v", i, d.state.DidResume, s.state.DidResume, want)
		}
	}
	trusted = roots(next)
	d, s := handshakeTLS(t, dc, sc)
	checkRefusal(t, s.err, "the certificate is signed by an unknown authority", new(x509.UnknownAuthorityError))
	if code, _ := d.failure(); code != Unauthenticated {
		t.Errorf("the client sees %v", d.err)
	}
}

func TestT13OtherProtocols(t *testing.T) {
	ca := newTestCA(t)
	good := &tableSide{TLSConfig: ca.trusting(ca.issue(t, nil))}
	for name, protocols := range map[string][]string{"none": nil, "another": {"h2"}} {
		t.Run("ALPN "+name, func(t *testing.T) {
			bad := &tableSide{TLSConfig: good.TLSConfig, edit: func(c *tls.Config) { c.NextProtos, c.VerifyConnection = protocols, nil }}
			const want = "the other side does not speak plugwire/1"
			if d, s := runTable(t, good, bad); name == "none" {
				checkRefusal(t, d.err, want, nil)
			} else { // here it is crypto/tls on the other side that refuses, and says so
				checkRefusal(t, d.err, want, nil)
				checkRefusal(t, s.err, "the TLS handshake failed", nil)
			}
			if d, s := runTable(t, bad, good); name == "none" {
				checkRefusal(t, s.err, want, nil)
			} else {
				checkRefusal(t, d.err, want, nil)
				checkRefusal(t, s.err, "the TLS handshake failed", nil)
			}
		})
	}
}
