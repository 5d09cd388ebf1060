//go:build !plugwire_notls

package plugwiretest_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"github.com/plugwire/plugwire"
)

// testTLS returns what sets Config.TLS, the same for both sides: a certificate
// that is its own authority.
func testTLS(t *testing.T) func(*plugwire.Config) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return func(c *plugwire.Config) {
		c.TLS.Names = []string{"test"}
		c.TLS.SetCertificate(tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf})
		c.TLS.SetRoots(func() (*x509.CertPool, error) { return roots, nil })
	}
}
