// A plugin that belongs to another program.
package main

import (
	"log"

	"github.com/plugwire/plugwire"
)

func main() {
	log.SetFlags(0)
	cfg := &plugwire.Config{Launch: plugwire.LaunchConfig{MagicCookie: "spreadsheet"}}
	if err := plugwire.ServePlugin(plugwire.NewMux(), cfg); err != nil {
		log.Fatal(err)
	}
}
