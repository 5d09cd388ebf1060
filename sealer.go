package plugwire

import "net"

// A sealer is the net.Conn of a connection that is encrypted (see tls_conn.go).
// During the handshake it is used like any other. Then goLive is called, and from
// then on whoever has it makes the system calls on the connection below: what
// is sent goes through seal, what is received to space and through unseal. One
// goroutine at a time seals, and one at a time receives.
type sealer interface {
	net.Conn
	below() net.Conn
	binding() ([]byte, error) // 32 bytes that this connection alone has
	goLive()
	seal(dst, plain []byte) ([]byte, error) // appends what carries plain
	space() []byte                          // where what arrives is read to
	received(n int)                         // so many bytes were read to space; 0: it will be a while
	unseal(dst []byte) (n int, err error)   // 0 and nil: more has to arrive
}
