//go:build plugwire_notls

package plugwire

func testTLS() TLSConfig { panic("PLUGWIRE_TEST_TLS is set, but this build has no TLS") }
