package conformance

import (
	"context"
	"errors"
	"fmt"
	"net/rpc"
	"sync"
	"testing"

	"github.com/plugwire/plugwire"
)

// Arith is a service for net/rpc.
type Arith struct{}

// Multiply answers a call.
func (Arith) Multiply(args [2]int, product *int) error {
	*product = args[0] * args[1]
	return nil
}

// Fail answers a call with an error.
func (Arith) Fail(text string, _ *struct{}) error { return errors.New(text) }

// Grow returns n bytes.
func (Arith) Grow(n int, b *[]byte) error {
	*b = make([]byte, n)
	return nil
}

func TestNetRPC(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		server := rpc.NewServer()
		if err := server.Register(Arith{}); err != nil {
			t.Fatal(err)
		}
		returned := make(chan struct{})
		mux := plugwire.NewMux()
		mux.HandleStream("rpc", func(s *plugwire.Stream) error {
			server.ServeConn(s.NetConn()) // returns when the client has closed
			close(returned)
			return nil
		})
		conn, stop, err := connect(t, transport, mux)
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		s, err := conn.OpenStream(context.Background(), "rpc")
		if err != nil {
			t.Fatal(err)
		}
		client := rpc.NewClient(s.NetConn())
		var wg sync.WaitGroup
		for g := range 32 {
			wg.Go(func() {
				for i := range 100 {
					var product int
					if err := client.Call("Arith.Multiply", [2]int{g, i}, &product); err != nil || product != g*i {
						t.Errorf("%d times %d is %d, %v", g, i, product, err)
						return
					}
				}
				text := fmt.Sprint("error ", g)
				if err := client.Call("Arith.Fail", text, &struct{}{}); err != rpc.ServerError(text) {
					t.Error(err)
				}
				var b []byte
				if err := client.Call("Arith.Grow", g<<15, &b); err != nil || len(b) != g<<15 {
					t.Errorf("%d bytes of %d, %v", len(b), g<<15, err)
				}
			})
		}
		wg.Wait()
		if err := client.Close(); err != nil {
			t.Error(err)
		}
		<-returned
		if err := client.Call("Arith.Multiply", [2]int{1, 1}, new(int)); err != rpc.ErrShutdown {
			t.Error(err)
		}
	})
}
