package main

import (
	"context"
	"fmt"
	"os"

	"github.com/plugwire/plugwire"
)

func main() {
	pool := plugwire.NewPool(nil, os.Args[1])
	defer pool.Close()
	fmt.Println(pool.Call(context.Background(), "greet", []byte("world")))
}
