package main

import (
	"context"
	"log"

	"github.com/plugwire/plugwire"
)

func main() {
	mux := plugwire.NewMux()
	mux.HandleFunc("greet", func(ctx context.Context, name []byte) ([]byte, error) {
		return append([]byte("hello, "), name...), nil
	})
	if err := plugwire.ServePlugin(mux, nil); err != nil {
		log.Fatal(err)
	}
}
