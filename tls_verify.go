//go:build !plugwire_notls

package plugwire

import (
	"bytes"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// A verifier says whether the other side is who it must be. It is not told
// anything that it refuses: messages are for the other side too, in plain, and
// have neither names nor numbers; the cause, for this side alone, has them.
type verifier struct {
	*TLSConfig
	usage x509.ExtKeyUsage               // what the other side's certificate must be for
	names []string                       // of which it must have one; nil: any
	pool  func() (*x509.CertPool, error) // nil in pin mode
}

// refused is the error for an other side that is not who it must be.
func refused(message string, cause error) error {
	return &Error{Code: Unauthenticated, Op: "handshake", Message: message, Err: cause}
}

// verifier checks what t says about the other side.
func (t *TLSConfig) verifier(dialler bool, host string, log *slog.Logger) (*verifier, error) {
	v := &verifier{TLSConfig: t, usage: x509.ExtKeyUsageClientAuth, names: t.Names}
	if dialler {
		v.usage = x509.ExtKeyUsageServerAuth
	}
	if t.pin != "" {
		return v, nil
	}
	get, _ := t.roots.(func() (*x509.CertPool, error))
	host, _, _ = strings.Cut(host, "%") // certificates have no zones
	switch {
	case get == nil && t.CAFile == "":
		return nil, badTLS("TLS is set, but not whose certificates to accept", "set TLS.CAFile, or call TLS.SetRoots")
	case get != nil && t.CAFile != "":
		return nil, badTLS("there are two lists of authorities", "either set TLS.CAFile, or call TLS.SetRoots")
	case t.TrustDomain == "" && t.AuthorizeID != nil:
		return nil, badTLS("TLS.AuthorizeID is set without TLS.TrustDomain", "only certificates with SPIFFE IDs have something to authorize")
	case t.TrustDomain != "" && t.Names != nil:
		return nil, badTLS("both TLS.TrustDomain and TLS.Names are set", "leave out one: a certificate is accepted for its SPIFFE ID or for its names")
	case t.TrustDomain != "" && !validTrustDomain(t.TrustDomain):
		return nil, badTLS(fmt.Sprintf("TLS.TrustDomain %q is not the name of a trust domain", t.TrustDomain), `such a name is "example.org"`)
	case t.Names != nil && len(t.Names) == 0:
		return nil, badTLS("TLS.Names has no name, so nobody could be accepted", "set it to nil for its default")
	case t.TrustDomain == "" && t.Names == nil && dialler && host == "":
		return nil, badTLS("nothing says which name the other side's certificate must have", "the address has no host: set TLS.Names or TLS.TrustDomain")
	case t.TrustDomain == "" && t.Names == nil && dialler:
		v.names = []string{host}
	}
	if t.CAFile == "" {
		v.pool = get
		return v, nil
	}
	src := caFiles(t.CAFile)
	v.pool = func() (*x509.CertPool, error) { return src.get(log) }
	if _, err := v.pool(); err != nil { // now, not at the first handshake
		return nil, err
	}
	return v, nil
}

// verify is tls.Config.VerifyConnection.
func (v *verifier) verify(cs tls.ConnectionState) error {
	switch {
	case cs.Version < tls.VersionTLS13:
		return refused("the other side does not speak TLS 1.3", fmt.Errorf("version %#x was agreed", cs.Version))
	case cs.NegotiatedProtocol != tlsProtocol:
		return refused("the other side does not speak "+tlsProtocol, fmt.Errorf("its protocol is %q (ALPN)", cs.NegotiatedProtocol))
	case len(cs.PeerCertificates) == 0:
		return refused("no certificate was sent", nil)
	}
	leaf, now := cs.PeerCertificates[0], time.Now()
	message, cause := v.check(leaf, cs.PeerCertificates[1:], now)
	if message == "" {
		return nil
	}
	if cause == nil {
		return refused(message, errors.New(aboutCert(leaf)))
	}
	return refused(message, fmt.Errorf("%s: %w", aboutCert(leaf), cause))
}

// check returns the reason to refuse leaf, or "".
func (v *verifier) check(leaf *x509.Certificate, between []*x509.Certificate, now time.Time) (message string, cause error) {
	switch {
	case leaf.IsCA:
		return "the certificate is of an authority (CA:true)", nil
	case !constraintsReadable(leaf):
		return "the certificate's constraints cannot be read", nil
	case now.Before(leaf.NotBefore):
		return "the certificate is not valid yet", nil
	case now.After(leaf.NotAfter):
		return "the certificate has expired", nil
	case !maySign(leaf):
		return "the certificate's key is not for signing", nil
	}
	if v.pin != "" {
		if subtle.ConstantTimeCompare([]byte(keyPin(leaf)), []byte(v.pin)) != 1 {
			return "the key is not the pinned one", nil
		}
		return "", nil
	}
	if message, cause = v.checkChain(leaf, between, now); message != "" {
		return message, cause
	}
	if v.TrustDomain != "" {
		return v.checkSVID(leaf)
	}
	return v.checkNames(leaf)
}

// Extensions of RFC 5280, 4.2.1.3, 4.2.1.6 and 4.2.1.9.
var (
	keyUsageID         = asn1.ObjectIdentifier{2, 5, 29, 15}
	subjectAltNameID   = asn1.ObjectIdentifier{2, 5, 29, 17}
	basicConstraintsID = asn1.ObjectIdentifier{2, 5, 29, 19}
)

// extension returns the value of one of the certificate's extensions, and whether it is there.
func extension(leaf *x509.Certificate, id asn1.ObjectIdentifier) (value []byte, ok bool) {
	i := slices.IndexFunc(leaf.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(id) })
	if i < 0 {
		return nil, false
	}
	return leaf.Extensions[i].Value, true
}

// constraintsReadable reports whether the whole of what says CA:false was understood:
// x509 takes no notice of what is behind that.
func constraintsReadable(leaf *x509.Certificate) bool {
	value, ok := extension(leaf, basicConstraintsID)
	if !ok {
		return true
	}
	var constraints struct {
		IsCA bool `asn1:"optional"`
		Len  int  `asn1:"optional,default:-1"`
	}
	_, err := asn1.Unmarshal(value, &constraints)
	return err == nil
}

// maySign reports whether the certificate lets its key sign, as TLS has it do (RFC
// 8446, 4.4.2.2): it says nothing of what the key is for, or that among it. To say
// that it is for nothing is not to say nothing, though KeyUsage is 0 for both.
func maySign(leaf *x509.Certificate) bool {
	_, says := extension(leaf, keyUsageID)
	return !says || leaf.KeyUsage&x509.KeyUsageDigitalSignature != 0
}

// checkChain checks who has signed the certificate, and for what use.
func (v *verifier) checkChain(leaf *x509.Certificate, between []*x509.Certificate, now time.Time) (string, error) {
	roots, err := v.pool()
	if err == nil && roots == nil { // which to x509 would mean the system's
		err = errors.New("the function of TLS.SetRoots returned no pool")
	}
	if err != nil {
		return "the certificate cannot be checked: there is no list of authorities", err
	}
	intermediates := x509.NewCertPool()
	for _, c := range between {
		intermediates.AddCert(c)
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{v.usage}})
	switch e := err.(type) {
	case nil:
		return "", nil
	case x509.UnknownAuthorityError:
		if bytes.Equal(leaf.RawIssuer, leaf.RawSubject) && leaf.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature) == nil {
			return "the certificate is signed by itself, not by a known authority", err
		}
		return "the certificate is signed by an unknown authority", err
	case x509.CertificateInvalidError:
		switch e.Reason {
		case x509.Expired:
			return "the certificate of an authority has expired or is not valid yet", err
		case x509.IncompatibleUsage:
			if v.usage == x509.ExtKeyUsageClientAuth {
				return "the certificate is not for use as a client", err
			}
			return "the certificate is not for use as a server", err
		}
	}
	return "the certificate is not valid", err
}

func (v *verifier) checkNames(leaf *x509.Certificate) (string, error) {
	var err error
	for _, name := range v.names {
		if err = leaf.VerifyHostname(name); err == nil {
			return "", nil
		}
	}
	if v.names != nil {
		return "the certificate has none of the names that are accepted", err
	}
	return "", nil
}

// checkSVID checks what the SPIFFE standard wants of an X.509-SVID beyond a valid chain.
func (v *verifier) checkSVID(leaf *x509.Certificate) (string, error) {
	uses := leaf.ExtKeyUsage
	forBoth := slices.Contains(uses, x509.ExtKeyUsageServerAuth) && slices.Contains(uses, x509.ExtKeyUsageClientAuth)
	switch {
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return "the certificate's key is not for signing", nil
	case leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return "the certificate's key is for signing certificates", nil
	case len(uses)+len(leaf.UnknownExtKeyUsage) > 0 && !forBoth:
		return "the certificate is not for use as both a client and a server", nil
	case len(leaf.URIs) != 1:
		return "the certificate does not have exactly one SPIFFE ID", fmt.Errorf("it has %d URIs", len(leaf.URIs))
	}
	id := leaf.URIs[0].String()
	domain, ok := parseSPIFFEID(id)
	switch {
	case !ok, !hasURI(leaf, id):
		return "the certificate's URI is not a SPIFFE ID of a workload", fmt.Errorf("it is %q", id)
	case domain != v.TrustDomain:
		return "the SPIFFE ID is of another trust domain", fmt.Errorf("it is %q, not in %q", id, v.TrustDomain)
	case v.AuthorizeID == nil:
		return "", nil
	}
	if err := v.AuthorizeID(id); err != nil {
		return "the SPIFFE ID is not authorized", fmt.Errorf("%q: %w", id, err)
	}
	return "", nil
}

// hasURI reports whether the certificate has the URI byte for byte: net/url drops
// an empty fragment and writes the scheme in small letters.
func hasURI(leaf *x509.Certificate, uri string) bool {
	name, err := asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(uri)}) // RFC 5280, 4.2.1.6
	names, ok := extension(leaf, subjectAltNameID)
	return err == nil && ok && bytes.Contains(names, name)
}

// Bounds of SPIFFE IDs, of
// https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md.
const (
	maxSPIFFEID    = 2048
	maxTrustDomain = 255
)

// parseSPIFFEID returns the trust domain of a workload's ID: one with a path,
// which a trust domain's own does not have.
func parseSPIFFEID(id string) (domain string, ok bool) {
	rest, ok := strings.CutPrefix(id, "spiffe://")
	if !ok || len(id) > maxSPIFFEID {
		return "", false
	}
	domain, path, ok := strings.Cut(rest, "/")
	if !ok || !validTrustDomain(domain) {
		return "", false
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." || strings.ContainsFunc(segment, func(r rune) bool {
			return !(r >= 'A' && r <= 'Z') && !trustDomainRune(r)
		}) {
			return "", false
		}
	}
	return domain, true
}

func validTrustDomain(s string) bool {
	return s != "" && len(s) <= maxTrustDomain && !strings.ContainsFunc(s, func(r rune) bool { return !trustDomainRune(r) })
}

func trustDomainRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_'
}

// aboutCert names a certificate in an error of this side.
func aboutCert(c *x509.Certificate) string {
	return fmt.Sprintf("certificate of %q, serial %x, issued by %q, valid from %s to %s", c.Subject, c.SerialNumber, c.Issuer,
		c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339))
}
