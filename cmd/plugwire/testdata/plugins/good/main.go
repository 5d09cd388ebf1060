// A plugin that works.
package main

import (
	"context"
	"log"

	"github.com/plugwire/plugwire"
)

func main() {
	log.SetFlags(0)
	mux := plugwire.NewMux()
	for _, method := range []string{"greet", "leave"} {
		mux.HandleFunc(method, func(_ context.Context, name []byte) ([]byte, error) { return name, nil })
	}
	if err := plugwire.ServePlugin(mux, nil); err != nil {
		log.Fatal(err)
	}
}
