package conformance

import (
	"context"
	"net"
	"testing"

	"github.com/plugwire/plugwire"
	"golang.org/x/net/nettest"
)

// TestNetConn has the tests of golang.org/x/net judge the opener's end of a
// stream, and the acceptor's: most of them try the first connection of the two.
func TestNetConn(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		t.Run("opener", func(t *testing.T) {
			nettest.TestConn(t, func() (opener, acceptor net.Conn, stop func(), err error) {
				return streamPair(t, transport)
			})
		})
		t.Run("acceptor", func(t *testing.T) {
			nettest.TestConn(t, func() (acceptor, opener net.Conn, stop func(), err error) {
				opener, acceptor, stop, err = streamPair(t, transport)
				return acceptor, opener, stop, err
			})
		})
	})
}

// streamPair returns the two ends of a stream over a connection of its own.
func streamPair(t *testing.T, transport string) (opener, acceptor net.Conn, stop func(), err error) {
	accepted, done := make(chan net.Conn, 1), make(chan struct{})
	mux := plugwire.NewMux()
	mux.HandleStream("pair", func(s *plugwire.Stream) error {
		accepted <- s.NetConn()
		<-done
		return nil
	})
	conn, disconnect, err := connect(t, transport, mux)
	if err != nil {
		return nil, nil, nil, err
	}
	s, err := conn.OpenStream(context.Background(), "pair")
	if err == nil {
		err = s.SendHeader() // so that the other side learns of it
	}
	if err != nil {
		disconnect()
		return nil, nil, nil, err
	}
	opener, acceptor = s.NetConn(), <-accepted
	return opener, acceptor, func() {
		opener.Close()
		acceptor.Close()
		close(done)
		disconnect()
	}, nil
}
