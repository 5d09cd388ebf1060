//go:build !plugwire_notls

package plugwire

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"testing"
	"time"
)

// A testCA signs the certificates of tests, which are made anew each time: no key
// is in the repository.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

const testName = "plugin.test"

func testKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newTestCA(t testing.TB) *testCA {
	t.Helper()
	ca := &testCA{key: testKey(t)}
	ca.cert = sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
	}, nil, ca.key, ca.key)
	return ca
}

// sign returns the certificate of the template for key, signed by itself where
// there is no parent.
func sign(t testing.TB, template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// leafTemplate is a certificate that is good in both roles, by name and by SPIFFE ID.
func leafTemplate() *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(0x5ec2e7), Subject: pkix.Name{CommonName: "secret-subject"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{testName}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/ns/a/sa/plugin"}},
		BasicConstraintsValid: true,
	}
}

// issue returns a certificate that the authority has signed: the template's,
// changed by edit, which may be nil.
func (ca *testCA) issue(t testing.TB, edit func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	template, key := leafTemplate(), testKey(t)
	if edit != nil {
		edit(template)
	}
	leaf := sign(t, template, ca.cert, key, ca.key)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// selfSigned is issue without an authority.
func selfSigned(t testing.TB, edit func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	template, key := leafTemplate(), testKey(t)
	if edit != nil {
		edit(template)
	}
	leaf := sign(t, template, nil, key, key)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// roots is for TLSConfig.SetRoots.
func roots(cas ...*testCA) func() (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	for _, ca := range cas {
		pool.AddCert(ca.cert)
	}
	return func() (*x509.CertPool, error) { return pool, nil }
}

// trusting is the TLSConfig of a side with cert that trusts the authority.
func (ca *testCA) trusting(cert tls.Certificate) TLSConfig {
	var c TLSConfig
	c.SetCertificate(cert)
	c.SetRoots(roots(ca))
	return c
}

func certPEM(certs ...*x509.Certificate) (b []byte) {
	for _, c := range certs {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return b
}

func keyPEM(t testing.TB, cert tls.Certificate) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// certFiles are the names of one side's files in a directory of their own.
type certFiles struct{ dir, cert, key, ca string }

func newCertFiles(dir string) certFiles {
	return certFiles{dir, filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), filepath.Join(dir, "ca.crt")}
}

func (f certFiles) config() TLSConfig {
	return TLSConfig{CertFile: f.cert, KeyFile: f.key, CAFile: f.ca}
}

func (f certFiles) write(t testing.TB, cert tls.Certificate, cas ...*testCA) {
	t.Helper()
	var authorities []*x509.Certificate
	for _, ca := range cas {
		authorities = append(authorities, ca.cert)
	}
	writeFile(t, f.cert, certPEM(cert.Leaf))
	writeFile(t, f.key, keyPEM(t, cert))
	writeFile(t, f.ca, certPEM(authorities...))
}
