package plugwire_test

import (
	"context"
	"fmt"
	"log"

	"github.com/plugwire/plugwire"
)

// A pool outlives its servers: calls go to those that are there.
func ExampleNewPool() {
	mux := plugwire.NewMux()
	mux.HandleFunc("greet", func(ctx context.Context, name []byte) ([]byte, error) {
		return append([]byte("hello, "), name...), nil
	})
	addr1, server1 := serve(mux)
	addr2, server2 := serve(mux)
	defer server2.Close()

	ctx := context.Background()
	pool := plugwire.NewPool(nil, addr1, addr2) // connects when it is first called
	defer pool.Close()
	for range 2 {
		reply, err := pool.Call(ctx, "greet", []byte("world"))
		fmt.Println(string(reply), err)
		if err := server1.Shutdown(ctx); err != nil { // in order: no call fails
			log.Fatal(err)
		}
	}
	// Output:
	// hello, world <nil>
	// hello, world <nil>
}
