//go:build plugwire_notls

package plugwire

import (
	"context"
	"net"
)

const builtWithTLS = false

// checkTLS refuses a Config with TLS: this build has none, and what was to be
// encrypted must not go out in plain.
func (c *Config) checkTLS(bool, string) error {
	if !c.hasTLS() {
		return nil
	}
	return &Error{Code: Unimplemented, Message: "Config.TLS is set, but this program is built without TLS", Hint: errNoTLS.Hint}
}

// newAutoTLS says that there is no automatic TLS either.
func newAutoTLS(string) (TLSConfig, string, error) {
	e := *errNoTLS // which who passes it on writes to
	return TLSConfig{}, "", &e
}

func autoTLSOf(commonName string, _ []byte) (TLSConfig, error) {
	t, _, err := newAutoTLS(commonName)
	return t, err
}

func (*TLSConfig) autoTLSKey() ([]byte, error) { return nil, nil }

// secure returns nc: checkTLS, which comes first, has refused what it cannot do.
func (c *Config) secure(_ context.Context, nc net.Conn, dialler bool, host string, _ *Peer) (net.Conn, error) {
	return nc, c.checkTLS(dialler, host)
}

// setPairPEM and setCAsPEM say that there is nothing here to read certificates.
func (t *TLSConfig) setPairPEM(cert, key []byte) error { return errNoTLS }

func (t *TLSConfig) setCAsPEM(pem []byte) error { return errNoTLS }
