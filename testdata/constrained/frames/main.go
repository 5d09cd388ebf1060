package main

import (
	"os"

	"github.com/plugwire/plugwire"
)

func main() {
	r := plugwire.NewFrameReader(os.Stdin, 1000)
	w := plugwire.NewFrameWriter(os.Stdout)
	for {
		h, b, err := r.ReadFrame()
		if err != nil {
			return
		}
		w.WriteFrame(h, b)
		w.Flush()
	}
}
