package plugwiretest

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/plugwire/plugwire"
)

// Pair returns both ends of a connection within this process, over a real socket
// where there is one (see NetPair). x has dialled, with the Config a; y has
// accepted, with b. Each may be nil, and each end serves its Config's Mux. Both
// are closed with the test.
func Pair(t testing.TB, a, b *plugwire.Config) (x, y *plugwire.Conn) {
	t.Helper()
	dialled, accepted := NetPair(t)
	return PairOver(t, dialled, accepted, a, b)
}

// PairOver is Pair over the two ends of a connection that the caller has made,
// which belong to x and y from then on. The test fails when the handshake does.
func PairOver(t testing.TB, dialled, accepted net.Conn, a, b *plugwire.Config) (x, y *plugwire.Conn) {
	t.Helper()
	var config plugwire.Config
	if b != nil {
		config = *b
	}
	opened := make(chan *plugwire.Conn, 1)
	config.OnConn = func(c *plugwire.Conn) {
		if b != nil && b.OnConn != nil {
			b.OnConn(c)
		}
		opened <- c
	}
	server := &plugwire.Server{Mux: config.Mux, Config: &config}
	served := make(chan error, 1)
	go func() { served <- server.ServeConn(context.Background(), accepted) }()

	x, err := plugwire.NewConn(context.Background(), dialled, a)
	var refused error
	select {
	case y = <-opened:
	case refused = <-served:
	}
	t.Cleanup(func() {
		closeAll(x, y)
		if y != nil {
			<-served
		}
	})
	if err := errors.Join(err, refused); err != nil {
		t.Fatalf("plugwiretest: handshake: %v", err)
	}
	return x, y
}

// closeAll closes the connections, at the same time because each waits for the
// other's farewell, and waits until they are over.
func closeAll(conns ...*plugwire.Conn) {
	var closing sync.WaitGroup
	for _, c := range conns {
		if c != nil {
			closing.Go(func() { c.Close(); <-c.Done() })
		}
	}
	closing.Wait()
}

// NetPair returns the two ends of a fresh connection, for PairOver or NewConn, as
// they are or with something around them: over a Unix socket, else over TCP, else
// net.Pipe. They are closed with the test.
func NetPair(t testing.TB) (dialled, accepted net.Conn) {
	for _, transport := range []string{"unix", "tcp"} {
		var err error
		if dialled, accepted, err = netPair(transport); err == nil {
			break
		}
		t.Logf("plugwiretest: no connection over %s: %v", transport, err)
	}
	if dialled == nil {
		dialled, accepted = net.Pipe()
	}
	t.Cleanup(func() { dialled.Close(); accepted.Close() })
	return dialled, accepted
}

// netPair connects to itself over a transport of this platform.
func netPair(transport string) (dialled, accepted net.Conn, err error) {
	l, err := new(plugwire.Server).Listen(transport + ":")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	// Both kinds of socket connect to a backlog before anyone accepts.
	if dialled, err = net.Dial(l.Addr().Network(), l.Addr().String()); err != nil {
		return nil, nil, err
	}
	for {
		if accepted, err = l.Accept(); err != nil {
			dialled.Close()
			return nil, nil, err
		}
		if transport != "tcp" || accepted.RemoteAddr().String() == dialled.LocalAddr().String() {
			return dialled, accepted, nil
		}
		accepted.Close() // a stranger: any local process can connect to a port
	}
}

// Relay copies what arrives at either of two connections to the other, and
// passes on when one direction ends. It closes both when that has happened in
// both directions or either broke off, and with the test. With it a Faulty can
// be put into a connection whose ends stay real sockets, of which plugwire reads
// and writes in other ways than of other connections.
func Relay(t testing.TB, a, b net.Conn) {
	var copying sync.WaitGroup
	move := func(from, to net.Conn) {
		if !relay(from, to) {
			a.Close()
			b.Close()
		}
	}
	copying.Go(func() { move(a, b) })
	copying.Go(func() { move(b, a) })
	ended := make(chan struct{})
	go func() {
		copying.Wait()
		a.Close()
		b.Close()
		close(ended)
	}()
	t.Cleanup(func() {
		a.Close()
		b.Close()
		<-ended
	})
}

// relay copies one direction and reports whether it ended well and the other can
// go on. It does not use io.Copy, which would splice past what is around a
// connection.
func relay(from, to net.Conn) bool {
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		for sent := 0; sent < n; {
			m, err := to.Write(b[sent:n])
			if err != nil || m == 0 {
				return false
			}
			sent += m
		}
		if err != nil {
			half, ok := to.(interface{ CloseWrite() error })
			return errors.Is(err, io.EOF) && ok && half.CloseWrite() == nil
		}
	}
}
