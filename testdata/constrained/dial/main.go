package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/plugwire/plugwire"
)

func main() {
	conn, err := plugwire.Dial(context.Background(), os.Args[1], nil)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	fmt.Println(conn.Call(context.Background(), "greet", []byte("world")))
}
