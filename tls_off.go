//go:build plugwire_notls

package plugwire

import "net"

// checkTLS refuses a Config with TLS: this build has none, and what was to be
// encrypted must not go out in plain.
func (c *Config) checkTLS(bool, string) error {
	if !c.hasTLS() {
		return nil
	}
	return &Error{Code: Unimplemented, Message: "Config.TLS is set, but this program is built without TLS", Hint: withTLS}
}

const builtWithTLS = false

const withTLS = "build it without the tag plugwire_notls"

// newAutoTLS says that there is no automatic TLS either.
func newAutoTLS(string) (TLSConfig, string, error) {
	return TLSConfig{}, "", &Error{Code: Unimplemented, Message: "this program is built without TLS", Hint: withTLS}
}

func autoTLSOf(commonName string, _ []byte) (TLSConfig, error) {
	t, _, err := newAutoTLS(commonName)
	return t, err
}

func (*TLSConfig) autoTLSKey() ([]byte, error) { return nil, nil }

// secure returns nc: checkTLS, which comes first, has refused what it cannot do.
func (c *Config) secure(nc net.Conn, dialler bool, host string, _ *Peer) (net.Conn, error) {
	return nc, c.checkTLS(dialler, host)
}
