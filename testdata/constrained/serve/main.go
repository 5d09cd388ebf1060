package main

import (
	"context"
	"log"
	"os"

	"github.com/plugwire/plugwire"
)

func main() {
	mux := plugwire.NewMux()
	mux.HandleFunc("greet", func(ctx context.Context, name []byte) ([]byte, error) {
		return append([]byte("hello, "), name...), nil
	})
	log.Fatal((&plugwire.Server{Mux: mux}).ListenAndServe(os.Args[1]))
}
