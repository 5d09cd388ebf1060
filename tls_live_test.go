//go:build !plugwire_notls

package plugwire

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// withTestTLS returns cfg with what both sides of a test trust.
func withTestTLS(cfg *Config) *Config {
	c := testConfig(cfg)
	c.TLS = testTLS()
	return c
}

// TestTLSCarriesEverything is a glance; with PLUGWIRE_TEST_TLS set, all tests that
// go over each transport go over TLS.
func TestTLSCarriesEverything(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		m := echoMux(nil)
		got := make(chan []byte, 100)
		m.Handle("note", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			got <- bytes.Clone(r.Payload())
			return reply, nil
		}))
		m.HandleStream("echo stream", func(s *Stream) error {
			for {
				b, err := s.Recv()
				if err == io.EOF {
					return nil
				} else if err == nil {
					err = s.Send(b)
				}
				if err != nil {
					return err
				}
			}
		})
		x, y := pair(t, transport, withTestTLS(serves(m)), withTestTLS(serves(m)))
		for _, c := range []*Conn{x, y} {
			if p := c.Peer(); p.Certificate() == nil || !p.Verified {
				t.Errorf("the peer is %v with certificate %v", p, p.Certificate())
			}
			var wg sync.WaitGroup
			for i, n := range []int{0, 1, 100, 16 << 10, 64 << 10, 64<<10 + 1, 1 << 20} {
				wg.Go(func() {
					for range 2 {
						if err := checkCall(background, c, n, uint64(i)); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Go(func() {
				for i := range 100 {
					if err := c.Notify(background, "note", sealed(i*100, uint64(i))); err != nil {
						t.Error(err)
					}
				}
				for i := range 100 {
					if seed, err := unseal(receive(t, "a note", got)); err != nil || seed != uint64(i) {
						t.Errorf("note %d: %d, %v", i, seed, err)
					}
				}
			})
			s, err := c.OpenStream(background, "echo stream")
			if err != nil {
				t.Fatal(err)
			}
			for i, n := range []int{10, 100 << 10, 2 << 20} {
				want := fill(n, uint64(i))
				errs := make(chan error, 1)
				go func() { errs <- s.Send(want) }()
				if b, err := s.Recv(); err != nil || !bytes.Equal(b, want) {
					t.Errorf("message of %d bytes came back with %d, %v", n, len(b), err)
				}
				if err := <-errs; err != nil {
					t.Error(err)
				}
			}
			s.CloseSend()
			if _, err := s.Recv(); err != io.EOF {
				t.Error(err)
			}
			wg.Wait()
		}
		accounts(t, x, y)
	})
}

// Both sides learn why they are not connected, whoever it is that refuses.
func TestT13BothSidesLearnWhyTLSFails(t *testing.T) {
	good := testTLS()
	other, otherPin, err := newAutoTLS("other")
	if err != nil {
		t.Fatal(err)
	}
	other.pin = good.pin // trusts the good one, which does not trust it
	trustsOther := good
	trustsOther.pin = otherPin
	tlsOf := func(c TLSConfig) *Config { return &Config{TLS: c, HandshakeTimeout: 5 * time.Second} }
	wrongKey := "the key is not the pinned one"
	noTLS := "the dialling side speaks plugwire without TLS, which the listening side requires"
	for name, row := range map[string]struct {
		dialler, listener *Config
		code              Code
		dials, serves     string
	}{
		"the listener does not know the dialler": {tlsOf(other), tlsOf(good), Unauthenticated, wrongKey, wrongKey},
		"the dialler does not know the listener": {tlsOf(good), tlsOf(other), Unauthenticated, wrongKey, wrongKey},
		"the dialler has no TLS":                 {&Config{}, tlsOf(good), Unauthenticated, noTLS, noTLS},
		"only the dialler is refused a secret": {&Config{TLS: good, secret: newSecret()}, &Config{TLS: good, secret: newSecret()},
			Unauthenticated, "one-time secret", "one-time secret"},
		"the kernel's word is enough": {tlsOf(good), &Config{TLS: good, vouch: func(*Peer) error {
			return &Error{Code: PermissionDenied, Message: "not you"}
		}}, PermissionDenied, "not you", "not you"},
		"the dialler thinks so": {&Config{TLS: good, vouch: func(*Peer) error {
			return &Error{Code: PermissionDenied, Message: "not you"}
		}}, tlsOf(good), PermissionDenied, "not you", "not you"},
		"Authorize refuses, and sees the certificate": {tlsOf(good), &Config{TLS: good, Authorize: func(p *Peer) error {
			if p.Certificate() == nil {
				return nil
			}
			return fmt.Errorf("not %s", p.Certificate().Subject.CommonName)
		}}, PermissionDenied, "not test", "not test"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			for range 5 {
				dialled, accepted := bothErrors(t, "unix", row.dialler, row.listener)
				names(t, "dialler", dialled, row.code, row.dials)
				names(t, "listener", accepted, row.code, row.serves)
			}
		})
	}
	t.Run("the-listener-has-no-TLS", func(t *testing.T) {
		dialled, accepted := bothErrors(t, "unix", tlsOf(good), &Config{})
		names(t, "dialler", dialled, Unavailable, "closed the connection", "Config.TLS")
		names(t, "listener", accepted, Unavailable, "TLS")
	})
	t.Run("and works when nothing is wrong", func(t *testing.T) {
		x, y := pair(t, "unix", tlsOf(good), tlsOf(good))
		closeBoth(x, y)
		x, y = pair(t, "unix", tlsOf(other), tlsOf(trustsOther))
		closeBoth(x, y)
	})
}

// Bits of a TLS handshake, changed: it fails, or the bit means nothing.
// PLUGWIRE_LONG has each bit changed.
func TestT25FlippedBitsOfAHandshakeOverTLS(t *testing.T) {
	key := newSecret()
	cfg := func(bool) *Config {
		c := withSecret(key)
		c.Authorize = anyone
		c.TLS = testTLS()
		c.HandshakeTimeout = 300 * time.Millisecond
		c.CloseTimeout = 300 * time.Millisecond
		return c.withDefaults()
	}
	every := 31 // another bit of every fourth byte
	if longTests {
		every = 1
	}
	accepted := flipAll(t, 900, every, cfg)
	for _, a := range accepted {
		t.Log("means nothing: ", a)
	}
	if len(accepted) > 40/every+4 {
		t.Errorf("neither side minds %d changes", len(accepted))
	}
}

// A proof that somebody passes on who sits between two TLS connections, and whom
// both sides' certificates let in, is good on neither.
func TestT25ProofBelongsToItsTLSConnection(t *testing.T) {
	cfg := withSecret(newSecret())
	cfg.Authorize, cfg.TLS = anyone, testTLS()
	cfg = cfg.withDefaults()
	dialled, a := socketPair(t, "unix")
	b, accepted := socketPair(t, "unix")
	var between sync.WaitGroup
	between.Go(func() {
		x, err1 := cfg.secure(background, a, false, "", new(Peer))
		y, err2 := cfg.secure(background, b, true, "", new(Peer))
		if err1 != nil || err2 != nil {
			t.Errorf("who sits between is not let in: %v, %v", err1, err2)
			return
		}
		forward := func(dst, src net.Conn) {
			io.Copy(dst, src)
			closeWrite(dst)
		}
		between.Go(func() { forward(x, y) })
		between.Go(func() { forward(y, x) })
	})
	served := make(chan error, 1)
	go func() { _, err := opened(open(background, accepted, false, "", cfg)); served <- err }()
	_, err := opened(open(background, dialled, true, "", cfg))
	names(t, "dialler", err, Unauthenticated, "does not know the one-time secret")
	names(t, "listener", receive(t, "the listener", served), Unauthenticated, "does not know the one-time secret")
	between.Wait()
}
