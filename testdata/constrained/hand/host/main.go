// A host written on net.Conn by hand, to be compared in size.
package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/plugwire/plugwire/testdata/constrained/hand/secret"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	cmd := exec.Command(os.Args[1])
	cmd.Env = append(os.Environ(), "SOCKET="+socket, "SECRET="+secret.New())
	out, err := cmd.StdoutPipe()
	if err != nil {
		log.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		log.Fatal(err)
	}
	var ready string
	fmt.Fscanln(out, &ready)
	nc, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		log.Fatal(err)
	}
	nc.Write(secret.Proof("host"))
	theirs := make([]byte, len(secret.Proof("plugin")))
	if _, err := io.ReadFull(nc, theirs); err != nil || !secret.Equal(theirs, secret.Proof("plugin")) {
		log.Fatal("not the plugin: ", err)
	}
	secret.Log(secret.Logger, "connected")
	name := "world"
	var head [4]byte
	binary.LittleEndian.PutUint32(head[:], uint32(len(name)))
	if _, err := nc.Write(append(head[:], name...)); err != nil {
		log.Fatal(err)
	}
	if _, err := io.ReadFull(nc, head[:]); err != nil {
		log.Fatal(err)
	}
	reply := make([]byte, binary.LittleEndian.Uint32(head[:]))
	if _, err := io.ReadFull(nc, reply); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", reply)
	nc.Close()
	cmd.Wait()
}
