// A plugin that is newer than its host, which is called with -versions 1,2.
package main

import (
	"log"

	"github.com/plugwire/plugwire"
)

func main() {
	log.SetFlags(0)
	if err := plugwire.ServePlugin(plugwire.NewMux(), &plugwire.Config{Versions: []int{3, 4}}); err != nil {
		log.Fatal(err)
	}
}
