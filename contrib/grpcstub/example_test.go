package grpcstub_test

import (
	"context"
	"fmt"
	"log"

	"github.com/plugwire/plugwire"
	"github.com/plugwire/plugwire/contrib/grpcstub"
	pb "google.golang.org/grpc/examples/helloworld/helloworld"
)

type greeter struct {
	pb.UnimplementedGreeterServer
}

func (greeter) SayHello(_ context.Context, in *pb.HelloRequest) (*pb.HelloReply, error) {
	return &pb.HelloReply{Message: "Hello " + in.GetName()}, nil
}

// The hello world of grpc-go's examples. In a plugin, plugwire.ServePlugin(mux, nil)
// takes the place of the server, and a *plugwire.Plugin that of the connection.
func Example() {
	mux := plugwire.NewMux()
	pb.RegisterGreeterServer(grpcstub.NewServer(mux, nil), greeter{})
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
	client := pb.NewGreeterClient(grpcstub.NewClient(conn, nil))
	reply, err := client.SayHello(ctx, &pb.HelloRequest{Name: "world"})
	fmt.Println(reply.GetMessage(), err)
	// Output:
	// Hello world <nil>
}
