package plugwire_test

import (
	"bytes"
	"fmt"
	"io"
	"log"

	"github.com/plugwire/plugwire"
)

// Frames of one's own protocol: the header's type, flags, code and id are free
// to use as docs/PROTOCOL.md defines them, the payload is anything.
func ExampleFrameWriter() {
	var wire bytes.Buffer
	w := plugwire.NewFrameWriter(&wire)
	if err := w.WriteFrame(plugwire.FrameHeader{Type: plugwire.FrameCall, Code: 7, ID: 1}, []byte("hello")); err != nil {
		log.Fatal(err)
	}
	if err := w.Flush(); err != nil { // until then frames gather in a buffer
		log.Fatal(err)
	}
	fmt.Printf("% x\n", wire.Bytes())
	// Output:
	// 05 00 00 00 05 00 07 00 01 00 00 00 68 65 6c 6c 6f
}

func ExampleFrameReader() {
	wire := "\x05\x00\x00\x00\x05\x00\x07\x00\x01\x00\x00\x00hello" +
		"\x00\x00\x00\x00\x08\x00\x00\x00\x01\x00\x00\x00"
	r := plugwire.NewFrameReader(bytes.NewReader([]byte(wire)), 64<<10)
	for {
		h, payload, err := r.ReadFrame()
		if err == io.EOF {
			break // between two frames; inside one it is io.ErrUnexpectedEOF
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%v code %d id %d %q\n", h.Type, h.Code, h.ID, payload)
	}
	// Output:
	// CALL code 7 id 1 "hello"
	// CANCEL code 0 id 1 ""
}

func ExampleParseFrameHeader() {
	_, err := plugwire.ParseFrameHeader([]byte("GET / HTTP/1.1\r\n"))
	fmt.Println(err)
	// Output:
	// plugwire: unknown frame type(0x2f)
}
