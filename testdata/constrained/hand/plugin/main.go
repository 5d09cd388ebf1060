// A plugin written on net.Conn by hand, to be compared in size.
package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"os"

	"github.com/plugwire/plugwire/testdata/constrained/hand/secret"
)

func main() {
	secret.Take()
	l, err := net.Listen("unix", os.Getenv("SOCKET"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("ready")
	nc, err := l.Accept()
	if err != nil {
		log.Fatal(err)
	}
	nc.Write(secret.Proof("plugin"))
	theirs := make([]byte, len(secret.Proof("host")))
	if _, err := io.ReadFull(nc, theirs); err != nil || !secret.Equal(theirs, secret.Proof("host")) {
		log.Fatal("not the host: ", err)
	}
	secret.Log(secret.Logger, "connected")
	var head [4]byte
	for {
		if _, err := io.ReadFull(nc, head[:]); err != nil {
			return
		}
		name := make([]byte, binary.LittleEndian.Uint32(head[:]))
		if _, err := io.ReadFull(nc, name); err != nil {
			log.Fatal(err)
		}
		reply := append([]byte("hello, "), name...)
		binary.LittleEndian.PutUint32(head[:], uint32(len(reply)))
		if _, err := nc.Write(append(head[:], reply...)); err != nil {
			log.Fatal(err)
		}
	}
}
