package main

import (
	"context"
	"log"

	"github.com/plugwire/plugwire"
)

type name struct{ Name string }

var greet = plugwire.NewMethod[name, name]("greet", plugwire.JSON)

func main() {
	mux := plugwire.NewMux()
	greet.Handle(mux, func(ctx context.Context, n *name) (*name, error) { return &name{"hello, " + n.Name}, nil })
	if err := plugwire.ServePlugin(mux, nil); err != nil {
		log.Fatal(err)
	}
}
