//go:build !plugwire_notls

package plugwire

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"
)

// This file and the others of its name hold all that knows crypto/tls. Here is
// what both sides set up; tls_verify.go says whom they accept, tls_files.go reads
// certificates from files.

// tlsProtocol is the name that both sides offer by ALPN, so that a certificate
// that is good for another service's protocol is not enough to speak this one.
const tlsProtocol = "plugwire/1"

const builtWithTLS = true // false with the tag plugwire_notls

// SetCertificate makes cert this side's certificate, instead of CertFile and KeyFile.
func (t *TLSConfig) SetCertificate(cert tls.Certificate) {
	t.SetCertificateFunc(func() (*tls.Certificate, error) { return &cert, nil })
}

// SetCertificateFunc has f asked for this side's certificate at each handshake,
// by several goroutines at once, instead of CertFile and KeyFile. An error fails
// that handshake.
func (t *TLSConfig) SetCertificateFunc(f func() (*tls.Certificate, error)) { t.cert = f }

// SetRoots has f asked at each handshake, by several goroutines at once, for the
// authorities that sign the other side's certificates, instead of CAFile. An
// error, or a nil pool, fails that handshake. x509.SystemCertPool is such an f.
func (t *TLSConfig) SetRoots(f func() (*x509.CertPool, error)) { t.roots = f }

// Certificate returns the certificate by which TLS verified the peer, or nil.
func (p *Peer) Certificate() *x509.Certificate {
	cert, _ := p.cert.(*x509.Certificate)
	return cert
}

// identify takes in who the other side is, after a handshake with t's rules: not
// before, for only the whole of it shows that the certificate's key is there.
func (p *Peer) identify(cs tls.ConnectionState, t *TLSConfig) {
	leaf := cs.PeerCertificates[0]
	p.cert, p.Verified = leaf, true
	p.name = fmt.Sprintf("certificate of %q", leaf.Subject)
	if t.pin == "" && t.TrustDomain != "" {
		p.SPIFFEID = leaf.URIs[0].String()
		p.name = p.SPIFFEID
	}
}

// checkTLS reports what is wrong with Config.TLS, if it is set.
func (c *Config) checkTLS(dialler bool, host string) error {
	if !c.hasTLS() {
		return nil
	}
	_, err := c.tlsConfig(dialler, host)
	return err
}

// tlsConfig returns the settings of one side for crypto/tls. host is that of the
// dialled address, or "". The result may serve many connections.
func (c *Config) tlsConfig(dialler bool, host string) (*tls.Config, error) {
	v, err := c.TLS.verifier(dialler, host, c.Logger)
	if err != nil {
		return nil, err
	}
	own, err := c.TLS.certificate(c.Logger)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{tlsProtocol},
		ServerName:         host,
		VerifyConnection:   v.verify,
		ClientAuth:         tls.RequestClientCert,
		InsecureSkipVerify: true,
		// VerifyConnection verifies everything, on both sides: the one hook that
		// crypto/tls calls in each handshake, also in one that resumes a session or
		// has no certificate. Its own verification would know neither pins nor SPIFFE
		// IDs, skip resumed sessions, and tell a missing certificate by text alone.
		SessionTicketsDisabled:      true, // who was rotated away must not come back by a ticket
		DynamicRecordSizingDisabled: true, // batches are large from the first on
		GetCertificate:              func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return own() },
		GetClientCertificate:        func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own() },
	}, nil
}

// certificate returns the function that gets this side's certificate at each handshake.
func (t *TLSConfig) certificate(log *slog.Logger) (func() (*tls.Certificate, error), error) {
	get, _ := t.cert.(func() (*tls.Certificate, error))
	files := t.CertFile != "" || t.KeyFile != ""
	switch {
	case get == nil && !files:
		return nil, badTLS("TLS is set, but not this side's certificate", "set TLS.CertFile and TLS.KeyFile, or call TLS.SetCertificate")
	case get != nil && files:
		return nil, badTLS("there are two certificates for this side", "either set TLS.CertFile and TLS.KeyFile, or call TLS.SetCertificate")
	case files && (t.CertFile == "" || t.KeyFile == ""):
		return nil, badTLS("of TLS.CertFile and TLS.KeyFile only one is set", "set both; they may name the same file")
	case files:
		src := pairFiles(t.CertFile, t.KeyFile)
		if _, err := src.get(log); err != nil { // now, not at the first handshake
			return nil, err
		}
		return func() (*tls.Certificate, error) { return src.get(log) }, nil
	}
	return func() (*tls.Certificate, error) {
		cert, err := get()
		if err == nil && cert == nil {
			err = errors.New("the function of TLS.SetCertificateFunc returned no certificate")
		}
		if err != nil {
			return nil, &Error{Code: FailedPrecondition, Op: "handshake", Message: "this side cannot get its certificate", Err: err}
		}
		return cert, nil
	}, nil
}

func badTLS(message, hint string) error {
	return &Error{Code: InvalidArgument, Message: message, Hint: hint}
}

// Automatic TLS: a launched plugin and its host make a key each, tell the other
// its pin, and accept nothing but that key.

// keyPin is what stands for a key in the environment and the launch line: the
// hash that RFC 7469 pins, of a key's whole SubjectPublicKeyInfo.
func keyPin(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// newIdentity makes a key for one launch and a certificate for it, signed by
// itself and good for both roles. The key is as short-lived as the process: it is
// never outside its memory. The certificate has no end of its own (that is what
// RFC 5280, 4.1.2.5, has the year 9999 for): trust in the pin ends with the
// launch, and a host and plugin that run for years must be able to connect again.
func newIdentity(commonName string) (cert *tls.Certificate, pin string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", err
	}
	return identityOf(commonName, key)
}

// identityOf makes a certificate for a key, see newIdentity.
func identityOf(commonName string, key *ecdsa.PrivateKey) (cert *tls.Certificate, pin string, err error) {
	serial := make([]byte, 16)
	rand.Read(serial)
	template := &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(serial),
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             time.Now().Add(-24 * time.Hour), // the clock may be set back
		NotAfter:              time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, "", err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, "", err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, keyPin(leaf), nil
}

// pinnedTLS is the TLSConfig of a side that has cert and accepts only the key of
// the pin, which newIdentity returned on the other side.
func pinnedTLS(cert *tls.Certificate, pin string) TLSConfig {
	t := TLSConfig{pin: pin}
	t.SetCertificate(*cert)
	return t
}

// newAutoTLS returns the TLSConfig of one side of a launch, whose pin is still to
// be set, and that side's own pin.
func newAutoTLS(commonName string) (TLSConfig, string, error) {
	cert, pin, err := newIdentity(commonName)
	if err != nil {
		return TLSConfig{}, "", err
	}
	return pinnedTLS(cert, ""), pin, nil
}

// autoTLSKey returns the key of what newAutoTLS returned, for autoTLSOf.
func (t *TLSConfig) autoTLSKey() ([]byte, error) {
	cert, err := t.cert.(func() (*tls.Certificate, error))()
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
}

// autoTLSOf is newAutoTLS with a key of before.
func autoTLSOf(commonName string, der []byte) (TLSConfig, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return TLSConfig{}, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return TLSConfig{}, fmt.Errorf("plugwire: a key of type %T", parsed)
	}
	cert, _, err := identityOf(commonName, key)
	if err != nil {
		return TLSConfig{}, err
	}
	return pinnedTLS(cert, ""), nil
}

// belowTLS are errors of connections and contexts that are no net.Error.
var belowTLS = []error{io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed, os.ErrDeadlineExceeded, context.Canceled, context.DeadlineExceeded}

// tlsError makes errors of crypto/tls, from the handshake or the first read after
// it, the same kind as those of verify. cs is the state of the connection then.
// Errors of the connection below, of its context and this package's own stay as
// they are.
func tlsError(cs tls.ConnectionState, err error) error {
	var own *Error
	var header tls.RecordHeaderError
	var op *net.OpError
	var network net.Error
	switch {
	case err == nil, errors.As(err, &own):
		return err
	case errors.As(err, &header) && cs.Version == 0:
		return refused("the other side does not speak TLS", notTLS(header.RecordHeader[:], err))
	case errors.As(err, &op) && op.Op == "remote error":
		return refused(alertMessage(op.Err), err)
	case errors.As(err, &op) && op.Op == "local error": // what is wrong with the other side's messages
		return refused("the TLS handshake failed", err)
	case errors.As(err, &network), slices.ContainsFunc(belowTLS, func(e error) bool { return errors.Is(err, e) }):
		return err
	case cs.Version == 0: // nothing that could be agreed on, or not even a hello
		return refused("the other side does not speak TLS 1.3", err)
	}
	return refused("the TLS handshake failed", err)
}

// notTLS guesses what sent header in place of a TLS record's.
func notTLS(header []byte, err error) error {
	if strings.HasPrefix(string(header), wireMagic) {
		return fmt.Errorf("it speaks plugwire without TLS: %w", err)
	}
	return fmt.Errorf("%w: %w", guessProtocol(header), err)
}

// alertMessage says what an alert of the other side (RFC 8446, 6.2) means here.
// The type of alerts is not exported, but it is a number.
func alertMessage(alert error) string {
	n := uint64(0)
	if v := reflect.ValueOf(alert); v.CanUint() {
		n = v.Uint()
	}
	switch n {
	case 70: // protocol_version
		return "the other side does not speak TLS 1.3"
	case 42, 43, 44, 46: // bad, unsupported, revoked, unknown
		return "the other side refuses this side's certificate"
	case 45:
		return "the other side says that this side's certificate has expired"
	case 48:
		return "the other side does not know the authority that signed this side's certificate"
	case 51: // decrypt_error
		return "the other side says that a signature is wrong"
	case 116:
		return "the other side wants a certificate, and this side sent none"
	case 120:
		return "the other side does not speak " + tlsProtocol
	}
	return "the other side broke the TLS handshake off"
}
