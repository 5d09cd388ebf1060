//go:build !plugwire_notls

package plugwire

import "sync"

var testIdentity = sync.OnceValue(func() TLSConfig {
	cert, pin, err := newIdentity("test")
	if err != nil {
		panic(err)
	}
	return pinnedTLS(cert, pin)
})

// testTLS is for both sides of a test.
func testTLS() TLSConfig { return testIdentity() }
