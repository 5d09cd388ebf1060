package protobuf_test

import (
	"context"
	"fmt"
	"log"

	"github.com/plugwire/plugwire"
	"github.com/plugwire/plugwire/contrib/protobuf"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// A method of protocol buffers. Generated messages take the place of those of
// the protobuf module.
func Example() {
	greet := plugwire.NewMethod[wrapperspb.StringValue, structpb.Value]("greet", protobuf.Codec)

	mux := plugwire.NewMux()
	greet.Handle(mux, func(_ context.Context, name *wrapperspb.StringValue) (*structpb.Value, error) {
		return structpb.NewStringValue("hello, " + name.GetValue()), nil
	})
	server := &plugwire.Server{Mux: mux}
	l, err := server.Listen("tcp:") // "unix:" where there are Unix sockets
	if err != nil {
		log.Fatal(err)
	}
	go server.Serve(l)
	defer server.Close()

	ctx := context.Background()
	conn, err := plugwire.Dial(ctx, "tcp://"+l.Addr().String(), nil)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	reply, err := greet.Call(ctx, conn, wrapperspb.String("world"))
	fmt.Println(reply.GetStringValue(), err)
	// Output:
	// hello, world <nil>
}
