//go:build !plugwire_notls

package plugwire

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"regexp"
	"testing"
	"time"
)

// FuzzCertificate shows the rules any certificate, by itself one of the known
// authorities, so that no signature keeps the fuzzer from what comes after: what
// they accept must be all that a second list of the rules, made from the raw
// extensions, accepts too.
func FuzzCertificate(f *testing.F) {
	forever := func(c *x509.Certificate) { c.NotAfter = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) }
	for _, edit := range []func(*x509.Certificate){
		func(*x509.Certificate) {},
		func(c *x509.Certificate) { c.IsCA = true },
		func(c *x509.Certificate) { c.URIs, c.ExtKeyUsage = nil, nil },
		func(c *x509.Certificate) { c.DNSNames, c.KeyUsage = nil, x509.KeyUsageCertSign },
	} {
		f.Add(selfSigned(f, func(c *x509.Certificate) { forever(c); edit(c) }).Certificate[0])
	}
	stranger := newTestCA(f)
	f.Fuzz(func(t *testing.T, der []byte) {
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		check := func(what string, c TLSConfig, dialler bool, allowed bool) {
			err := verifierOf(t, c, dialler, testName).verify(stateOf(leaf, leaf))
			var own *Error
			if err != nil && (!errors.As(err, &own) || own.Code != Unauthenticated || own.Message == "" || own.Error() == "") {
				t.Fatalf("%s: refused with %v", what, err)
			}
			if err == nil && !allowed {
				t.Fatalf("%s: accepted, and must not be", what)
			}
		}
		r := readRules(t, leaf)
		var known, unknown TLSConfig
		pool := x509.NewCertPool()
		pool.AddCert(leaf)
		known.SetRoots(func() (*x509.CertPool, error) { return pool, nil })
		unknown.SetRoots(roots(stranger))
		sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
		check("pin", pinnedTLS(&tls.Certificate{}, base64.StdEncoding.EncodeToString(sum[:])), true, r.leaf)
		check("wrong pin", pinnedTLS(&tls.Certificate{}, keyPin(stranger.cert)), true, false)
		check("client", known, false, r.leaf && r.client)
		check("server", known, true, r.leaf && r.server && leaf.VerifyHostname(testName) == nil)
		check("unknown authority", unknown, false, false)
		known.TrustDomain = "example.org"
		check("SPIFFE client", known, false, r.leaf && r.client && r.svid)
		check("SPIFFE server", known, true, r.leaf && r.server && r.svid)
		known.AuthorizeID = func(string) error { return errors.New("no") }
		check("SPIFFE, not authorized", known, true, false)
		p := new(Peer)
		p.identify(stateOf(leaf), new(TLSConfig))
		_ = p.String()
	})
}

// rules are the reference: what a certificate's raw extensions say.
type rules struct {
	leaf           bool // no authority, in its time, and its key may sign
	client, server bool
	svid           bool // of example.org
}

var workloadID = regexp.MustCompile(`^spiffe://example\.org(/[-._A-Za-z0-9]+)+$`)
var dots = regexp.MustCompile(`/\.\.?(/|$)`)

func readRules(t *testing.T, c *x509.Certificate) rules {
	var constraints struct {
		IsCA bool `asn1:"optional"`
		Len  int  `asn1:"optional,default:-1"`
	}
	var usage asn1.BitString
	var uses []asn1.ObjectIdentifier
	var names []asn1.RawValue
	for _, e := range c.Extensions {
		var into any
		switch e.Id.String() {
		case "2.5.29.19":
			into = &constraints
		case "2.5.29.15":
			into = &usage
		case "2.5.29.37":
			into = &uses
		case "2.5.29.17":
			into = &names
		default:
			continue
		}
		if _, err := asn1.Unmarshal(e.Value, into); err != nil {
			return rules{} // what this cannot read, nobody should accept
		}
	}
	now := time.Now()
	hasUsage := usage.BitLength > 0
	r := rules{leaf: !constraints.IsCA && !now.Before(c.NotBefore) && !now.After(c.NotAfter) && (!hasUsage || usage.At(0) == 1)}
	const anyUse, serverAuth, clientAuth = "2.5.29.37.0", "1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"
	forUse := map[string]bool{}
	for _, u := range uses {
		forUse[u.String()] = true
	}
	none := len(uses) == 0
	r.client, r.server = none || forUse[anyUse] || forUse[clientAuth], none || forUse[anyUse] || forUse[serverAuth]
	var uris []string
	for _, n := range names {
		if n.Class == asn1.ClassContextSpecific && n.Tag == 6 {
			uris = append(uris, string(n.Bytes))
		}
	}
	r.svid = hasUsage && usage.At(0) == 1 && usage.At(5) == 0 && usage.At(6) == 0 &&
		(none || forUse[serverAuth] && forUse[clientAuth]) &&
		len(uris) == 1 && len(uris[0]) <= 2048 && workloadID.MatchString(uris[0]) && !dots.MatchString(uris[0])
	return r
}
