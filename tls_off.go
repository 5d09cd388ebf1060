//go:build plugwire_notls

package plugwire

// checkTLS refuses a Config with TLS: this build has none, and what was to be
// encrypted must not go out in plain.
func (c *Config) checkTLS(bool, string) error {
	if !c.hasTLS() {
		return nil
	}
	return &Error{Code: Unimplemented, Message: "Config.TLS is set, but this program is built without TLS",
		Hint: "build it without the tag plugwire_notls"}
}
