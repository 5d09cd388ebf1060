package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/exec"

	"github.com/plugwire/plugwire"
)

func main() {
	p, err := plugwire.Launch(context.Background(), exec.Command(os.Args[1]), nil)
	if err != nil {
		log.Fatal(err)
	}
	defer p.Close()
	reply, err := p.Call(context.Background(), "greet", []byte("world"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", reply)
}
