//go:build !plugwire_notls

package plugwire

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// stateOf is what crypto/tls would show of a handshake with these certificates.
func stateOf(certs ...*x509.Certificate) tls.ConnectionState {
	return tls.ConnectionState{Version: tls.VersionTLS13, NegotiatedProtocol: tlsProtocol, PeerCertificates: certs}
}

// verifierOf returns the rules of one side.
func verifierOf(t testing.TB, c TLSConfig, dialler bool, host string) *verifier {
	t.Helper()
	v, err := c.verifier(dialler, host, nil)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// checkVerified wants a message, or none, and err's cause where there is a reason.
func checkVerified(t *testing.T, v *verifier, want string, certs ...*x509.Certificate) {
	t.Helper()
	err := v.verify(stateOf(certs...))
	if want != "" {
		checkRefusal(t, err, want, nil)
	} else if err != nil {
		t.Errorf("refused: %v", err)
	}
}

func TestTLSNames(t *testing.T) {
	const none = "the certificate has none of the names that are accepted"
	ca := newTestCA(t)
	leaf := ca.issue(t, nil).Leaf
	nameless := ca.issue(t, func(c *x509.Certificate) { c.DNSNames, c.IPAddresses, c.URIs = nil, nil, nil }).Leaf
	v6 := ca.issue(t, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.ParseIP("fe80::1")} }).Leaf
	for _, row := range []struct {
		what    string
		names   []string
		dialler bool
		host    string
		leaf    *x509.Certificate
		want    string
	}{
		{"host", nil, true, testName, leaf, ""},
		{"address", nil, true, "127.0.0.1", leaf, ""},
		{"address with zone", nil, true, "fe80::1%lo", v6, ""},
		{"another host", nil, true, "other.test", leaf, none},
		{"another address", nil, true, "127.0.0.2", leaf, none},
		{"no name at all", nil, true, testName, nameless, none},
		{"the common name is no name", nil, true, "secret-subject", leaf, none},
		{"names instead of the host", []string{"x.test", testName}, true, "other.test", leaf, ""},
		{"names, and not the host", []string{"x.test"}, true, testName, leaf, none},
		{"any client", nil, false, "", nameless, ""},
		{"a client by name", []string{testName}, false, "", leaf, ""},
		{"another client", []string{"x.test"}, false, "", leaf, none},
	} {
		t.Run(row.what, func(t *testing.T) {
			c := ca.trusting(tls.Certificate{})
			c.Names = row.names
			checkVerified(t, verifierOf(t, c, row.dialler, row.host), row.want, row.leaf)
		})
	}
}

func TestTLSChains(t *testing.T) {
	root := newTestCA(t)
	between := &testCA{key: testKey(t)}
	template := *root.cert
	template.Subject.CommonName = "between"
	template.SerialNumber = leafTemplate().SerialNumber
	between.cert = sign(t, &template, root.cert, between.key, root.key)
	leaf := between.issue(t, nil).Leaf
	v := verifierOf(t, root.trusting(tls.Certificate{}), false, "")
	checkVerified(t, v, "", leaf, between.cert)
	checkVerified(t, v, "the certificate is signed by an unknown authority", leaf)

	// A leaf that signs is no authority.
	signer := root.issue(t, nil)
	under := &testCA{cert: signer.Leaf, key: signer.PrivateKey.(*ecdsa.PrivateKey)}
	checkVerified(t, v, "the certificate is signed by an unknown authority", under.issue(t, nil).Leaf, signer.Leaf)

	sealed := root.issue(t, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }).Leaf
	checkVerified(t, v, "the certificate's key is not for signing", sealed)
	checkVerified(t, v, "no certificate was sent")
	old := stateOf(leaf, between.cert) // where tls.Config.MinVersion has failed
	old.Version = tls.VersionTLS12
	checkRefusal(t, v.verify(old), "the other side does not speak TLS 1.3", nil)
}

// Without authorities crypto/x509 would ask the system's, which sign for anybody.
func TestTLSRootsThatAreMissingTrustNobody(t *testing.T) {
	ca := newTestCA(t)
	for name, f := range map[string]func() (*x509.CertPool, error){
		"nil":   func() (*x509.CertPool, error) { return nil, nil },
		"error": func() (*x509.CertPool, error) { return nil, os.ErrPermission },
	} {
		t.Run(name, func(t *testing.T) {
			var c TLSConfig
			c.SetRoots(f)
			err := verifierOf(t, c, false, "").verify(stateOf(ca.issue(t, nil).Leaf))
			checkRefusal(t, err, "the certificate cannot be checked: there is no list of authorities", nil)
			if name == "error" && !errors.Is(err, os.ErrPermission) {
				t.Errorf("the cause is lost: %v", err)
			}
		})
	}
}

func TestTLSFunctionThatHasNoCertificate(t *testing.T) {
	ca := newTestCA(t)
	for name, f := range map[string]func() (*tls.Certificate, error){
		"nil":   func() (*tls.Certificate, error) { return nil, nil },
		"error": func() (*tls.Certificate, error) { return nil, os.ErrPermission },
	} {
		t.Run(name, func(t *testing.T) {
			good := &tableSide{TLSConfig: ca.trusting(ca.issue(t, nil))}
			bad := &tableSide{TLSConfig: good.TLSConfig}
			bad.SetCertificateFunc(f)
			if d, s := runTable(t, good, bad); CodeOf(s.err) != FailedPrecondition || CodeOf(d.err) != Unauthenticated {
				t.Errorf("server %v, dialler %v", s.err, d.err)
			}
			// A client that cannot go on only closes the connection.
			if d, s := runTable(t, bad, good); CodeOf(d.err) != FailedPrecondition || s.err == nil {
				t.Errorf("dialler %v, server %v", d.err, s.err)
			}
		})
	}
}

// The rules of X.509-SVIDs, https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md.
func TestT13SPIFFERules(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	ids := func(ids ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.URIs = nil
			for _, id := range ids {
				u, err := url.Parse(id)
				if err != nil {
					t.Fatal(err)
				}
				c.URIs = append(c.URIs, u)
			}
		}
	}
	rawURI := func(uri string) func(*x509.Certificate) { // for net/url would make another of it
		return func(c *x509.Certificate) {
			names, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(uri)}})
			if err != nil {
				t.Fatal(err)
			}
			c.DNSNames, c.IPAddresses, c.URIs = nil, nil, nil
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: names}}
		}
	}
	usage := func(u x509.KeyUsage) func(*x509.Certificate) { return func(c *x509.Certificate) { c.KeyUsage = u } }
	extended := func(u ...x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = u }
	}
	const (
		notID  = "the certificate's URI is not a SPIFFE ID of a workload"
		notOne = "the certificate does not have exactly one SPIFFE ID"
		signs  = "the certificate's key is for signing certificates"
		noSign = "the certificate's key is not for signing"
		both   = "the certificate is not for use as both a client and a server"
	)
	longest := "spiffe://example.org/" + strings.Repeat("a", maxSPIFFEID-len("spiffe://example.org/"))
	for _, row := range []struct {
		name string
		edit func(*x509.Certificate)
		want string
	}{
		{"valid", nil, ""},
		{"one URI and nothing else", rawURI("spiffe://example.org/a"), ""},
		{"no DNS name, which an SVID does not need", func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, nil }, ""},
		{"no extended key usage", extended(), ""},
		{"longest ID", ids(longest), ""},
		{"other characters", ids("spiffe://example.org/A-Z_0.9/..."), ""},
		{"no URI", ids(), notOne},
		{"two URIs", ids("spiffe://example.org/a", "spiffe://example.org/b"), notOne},
		{"a second URI that is none of SPIFFE", ids("spiffe://example.org/a", "https://example.org/"), notOne},
		{"another scheme", ids("https://example.org/a"), notID},
		{"another trust domain", ids("spiffe://example.com/a"), "the SPIFFE ID is of another trust domain"},
		{"a trust domain below", ids("spiffe://a.example.org/a"), "the SPIFFE ID is of another trust domain"},
		{"the trust domain's own ID", ids("spiffe://example.org"), notID},
		{"root path", ids("spiffe://example.org/"), notID},
		{"slash at the end", ids("spiffe://example.org/a/"), notID},
		{"empty segment", ids("spiffe://example.org/a//b"), notID},
		{"dot segment", ids("spiffe://example.org/a/./b"), notID},
		{"dot dot segment", ids("spiffe://example.org/a/../b"), notID},
		{"percent", ids("spiffe://example.org/%61"), notID},
		{"query", ids("spiffe://example.org/a?b"), notID},
		{"fragment", ids("spiffe://example.org/a#b"), notID},
		{"empty fragment", rawURI("spiffe://example.org/a#"), notID},
		{"upper case scheme", rawURI("SPIFFE://example.org/a"), notID},
		{"user", ids("spiffe://user@example.org/a"), notID},
		{"port", ids("spiffe://example.org:80/a"), notID},
		{"upper case domain", ids("spiffe://Example.org/a"), notID},
		{"too long", ids(longest + "a"), notID},
		{"CA:true", func(c *x509.Certificate) { c.IsCA = true }, "the certificate is of an authority (CA:true)"},
		{"no key usage", usage(0), noSign},
		{"no digitalSignature", usage(x509.KeyUsageKeyAgreement), noSign},
		{"keyCertSign", usage(x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign), signs},
		{"cRLSign", usage(x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign), signs},
		{"only a server", extended(x509.ExtKeyUsageServerAuth), both},
		{"only a client", extended(x509.ExtKeyUsageClientAuth), both},
		{"any use", extended(x509.ExtKeyUsageAny), both},
		{"expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, "the certificate has expired"},
		{"not authorized", ids("spiffe://example.org/forbidden"), "the SPIFFE ID is not authorized"},
	} {
		t.Run(row.name, func(t *testing.T) {
			leaf := ca.issue(t, row.edit).Leaf
			for _, dialler := range []bool{true, false} {
				want := row.want
				switch { // crypto/x509 sees it first
				case row.name == "only a client" && dialler:
					want = "the certificate is not for use as a server"
				case row.name == "only a server" && !dialler:
					want = "the certificate is not for use as a client"
				}
				c := ca.trusting(tls.Certificate{})
				c.TrustDomain = "example.org"
				asked := ""
				c.AuthorizeID = func(id string) error {
					asked = id
					if strings.HasSuffix(id, "/forbidden") {
						return os.ErrPermission
					}
					return nil
				}
				v := verifierOf(t, c, dialler, "other.test")
				checkVerified(t, v, want, leaf)
				if (asked != "") != (want == "" || row.name == "not authorized") {
					t.Errorf("AuthorizeID was asked about %q", asked)
				}
				c.SetRoots(roots(other))
				asked = ""
				if err := verifierOf(t, c, dialler, "").verify(stateOf(leaf)); CodeOf(err) != Unauthenticated || asked != "" {
					t.Errorf("of another authority: %v, AuthorizeID was asked about %q", err, asked)
				}
			}
		})
	}
}

// A SPIFFE ID is the peer's only where its trust domain was checked.
func TestPeerHasTheVerifiedIdentityOnly(t *testing.T) {
	ca := newTestCA(t)
	leaf := ca.issue(t, nil).Leaf
	plain := ca.trusting(tls.Certificate{})
	spiffe := plain
	spiffe.TrustDomain = "example.org"
	const id = "spiffe://example.org/ns/a/sa/plugin"
	for _, row := range []struct {
		c      TLSConfig
		id     string
		string string
	}{
		{plain, "", `certificate of "CN=secret-subject" over tcp`},
		{pinnedTLS(&tls.Certificate{}, keyPin(leaf)), "", `certificate of "CN=secret-subject" over tcp`},
		{spiffe, id, id + " over tcp"},
	} {
		p := &Peer{UID: -1, GID: -1, PID: -1, Transport: "tcp"}
		if p.Certificate() != nil {
			t.Error("a certificate from nowhere")
		}
		checkVerified(t, verifierOf(t, row.c, false, ""), "", leaf)
		p.identify(stateOf(leaf), &row.c)
		if p.Certificate() != leaf || p.SPIFFEID != row.id || !p.Verified {
			t.Errorf("%+v, want the ID %q", p, row.id)
		}
		if p.String() != row.string {
			t.Errorf("%v, want %s", p, row.string)
		}
	}
}

// What is half configured is an error that names the fields, and never plaintext.
func TestTLSHalfConfigured(t *testing.T) {
	ca := newTestCA(t)
	f := newCertFiles(t.TempDir())
	f.write(t, ca.issue(t, nil), ca)
	missing := filepath.Join(f.dir, "missing")
	for _, row := range []struct {
		what   string
		change func(*TLSConfig)
		host   string
		code   Code
		names  []string
	}{
		{"no certificate", func(c *TLSConfig) { c.CertFile, c.KeyFile = "", "" }, testName, InvalidArgument, []string{"TLS.CertFile", "TLS.KeyFile", "TLS.SetCertificate"}},
		{"no key", func(c *TLSConfig) { c.KeyFile = "" }, testName, InvalidArgument, []string{"TLS.CertFile", "TLS.KeyFile"}},
		{"only a key", func(c *TLSConfig) { c.CertFile = "" }, testName, InvalidArgument, []string{"TLS.CertFile", "TLS.KeyFile"}},
		{"two certificates", func(c *TLSConfig) { c.SetCertificate(ca.issue(t, nil)) }, testName, InvalidArgument, []string{"TLS.CertFile", "TLS.SetCertificate"}},
		{"nobody to trust", func(c *TLSConfig) { c.CAFile = "" }, testName, InvalidArgument, []string{"TLS.CAFile", "TLS.SetRoots"}},
		{"a name to trust, but no authority", func(c *TLSConfig) { c.CAFile, c.Names = "", []string{testName} }, testName, InvalidArgument, []string{"TLS.CAFile"}},
		{"two lists of authorities", func(c *TLSConfig) { c.SetRoots(roots(ca)) }, testName, InvalidArgument, []string{"TLS.CAFile", "TLS.SetRoots"}},
		{"SPIFFE and names", func(c *TLSConfig) { c.TrustDomain, c.Names = "example.org", []string{testName} }, testName, InvalidArgument, []string{"TLS.TrustDomain", "TLS.Names"}},
		{"a trust domain that is an ID", func(c *TLSConfig) { c.TrustDomain = "spiffe://example.org" }, testName, InvalidArgument, []string{"TLS.TrustDomain"}},
		{"who decides, but on nothing", func(c *TLSConfig) { c.AuthorizeID = func(string) error { return nil } }, testName, InvalidArgument, []string{"TLS.AuthorizeID", "TLS.TrustDomain"}},
		{"no name of many", func(c *TLSConfig) { c.Names = []string{} }, testName, InvalidArgument, []string{"TLS.Names"}},
		{"no name to dial", func(c *TLSConfig) {}, "", InvalidArgument, []string{"TLS.Names", "TLS.TrustDomain"}},
		{"only authorities", func(c *TLSConfig) { *c = TLSConfig{CAFile: f.ca} }, testName, InvalidArgument, []string{"TLS.CertFile"}},
		{"certificate missing", func(c *TLSConfig) { c.CertFile = missing }, testName, FailedPrecondition, []string{missing}},
		{"key missing", func(c *TLSConfig) { c.KeyFile = missing }, testName, FailedPrecondition, []string{missing}},
		{"authorities missing", func(c *TLSConfig) { c.CAFile = missing }, testName, FailedPrecondition, []string{missing}},
		{"authorities that are a key", func(c *TLSConfig) { c.CAFile = f.key }, testName, FailedPrecondition, []string{f.key}},
	} {
		t.Run(row.what, func(t *testing.T) {
			c := &Config{TLS: f.config()}
			row.change(&c.TLS)
			if !c.hasTLS() {
				t.Error("plaintext would be spoken")
			}
			err := c.checkTLS(true, row.host)
			var own *Error
			if !errors.As(err, &own) || own.Code != row.code {
				t.Fatalf("got %v, want code %v", err, row.code)
			}
			for _, name := range row.names {
				if !strings.Contains(err.Error(), name) {
					t.Errorf("%v does not name %s", err, name)
				}
			}
			if row.code == FailedPrecondition && row.names[0] == missing && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the cause is lost: %v", err)
			}
		})
	}
	if c := (&Config{TLS: f.config()}); c.checkTLS(true, testName) != nil || c.checkTLS(false, "") != nil {
		t.Error("what is whole is refused")
	}
	if c := new(Config); c.hasTLS() || c.checkTLS(true, "") != nil {
		t.Error("the zero Config has TLS")
	}
}

// What is not TLS gets the same kind of error, with a guess.
func TestTLSErrorsOfOtherProtocols(t *testing.T) {
	ca := newTestCA(t)
	c := ca.trusting(ca.issue(t, nil))
	for name, sent := range map[string]string{
		"HTTP":                 "GET / HTTP/1.1\r\n\r\n",
		"SSH":                  "SSH-2.0-OpenSSH_9.9\r\n",
		"plugwire without TLS": wireMagic + "\x00\x00\x00\x00",
	} {
		for _, dialler := range []bool{true, false} {
			near, far := net.Pipe()
			go func() {
				far.SetDeadline(time.Now().Add(10 * time.Second))
				if dialler {
					far.Read(make([]byte, 4096))
				}
				far.Write([]byte(sent))
				far.Read(make([]byte, 4096)) // the alert
				far.Close()
			}()
			conn := tls.Server(near, tlsConfigOf(t, c, false, ""))
			if dialler {
				conn = tls.Client(near, tlsConfigOf(t, c, true, testName))
			}
			near.SetDeadline(time.Now().Add(10 * time.Second))
			err := tlsError(conn.ConnectionState(), conn.Handshake())
			near.Close()
			checkRefusal(t, err, "the other side does not speak TLS", nil)
			if !strings.Contains(err.Error(), name) {
				t.Errorf("%v does not name %s", err, name)
			}
		}
	}
	// A connection that breaks is no question of identity.
	near, far := net.Pipe()
	far.Close()
	conn := tls.Server(near, tlsConfigOf(t, c, false, ""))
	if err := tlsError(conn.ConnectionState(), conn.Handshake()); err == nil || CodeOf(err) == Unauthenticated {
		t.Errorf("end of the connection: %v", err)
	}
}
