//go:build !plugwire_notls

package plugwire

import (
	"net"
	"sync"
	"testing"
)

var testIdentity = sync.OnceValue(func() TLSConfig {
	cert, pin, err := newIdentity("test")
	if err != nil {
		panic(err)
	}
	return pinnedTLS(cert, pin)
})

// testTLS is for both sides of a test.
func testTLS() TLSConfig { return testIdentity() }

// stallsOverTLS are those who stall in the handshake of TLS.
func stallsOverTLS(t *testing.T) []stall {
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() {
		testConfig(&Config{TLS: testTLS()}).secure(background, theirs, true, "", new(Peer))
		theirs.Close()
	}()
	hello := make([]byte, 4096)
	n, err := ours.Read(hello)
	if err != nil {
		t.Fatal(err)
	}
	cfg := &Config{TLS: testTLS()}
	return []stall{
		{name: "nothing over TLS", cfg: cfg},
		{name: "half a ClientHello", send: hello[:n/2], cfg: cfg},
		{name: "a ClientHello alone", send: hello[:n], cfg: cfg},
	}
}
