//go:build plugwire_notls

package plugwire

import "testing"

const haveTLS = false

func testTLS() TLSConfig { panic("PLUGWIRE_TEST_TLS is set, but this build has no TLS") }

func stallsOverTLS(*testing.T) []stall { return nil }
