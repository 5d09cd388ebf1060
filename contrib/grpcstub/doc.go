// Package grpcstub runs code that protoc-gen-go-grpc has generated over
// plugwire, as it is.
//
// Use NewClient where generated code takes a grpc.ClientConnInterface, and
// NewServer where it takes a grpc.ServiceRegistrar:
//
//	pb.RegisterGreeterServer(grpcstub.NewServer(mux, nil), &greeter{})
//	client := pb.NewGreeterClient(grpcstub.NewClient(conn, nil))
//
// Nothing of gRPC's transport is there: no HTTP/2, no channels, no load
// balancing. The README has a table of what is supported.
//
// # On the wire
//
// A gRPC method is a plugwire method of its full name, "/package.Service/Method":
// a unary one is a call, any other a stream. Messages are in the protobuf
// binary format, without gRPC's five-byte prefix.
//
// A metadata key with one value is plugwire metadata, the value as it is (binary
// ones too). A key with several values is sent as the key and "*", which cannot
// be in a gRPC key; its value is each value behind its length (uvarint). A unary
// method's header and trailer both come with the reply, the trailer's keys behind
// "trailer/". Keys that gRPC reserves for itself, such as "content-type", are
// neither sent nor accepted.
//
// A status is a plugwire error with the same code and message. One that has more
// to it (details, a code that is none of the canonical ones, no message, a message
// of more than 2 KiB) is in the error's Detail, as a google.protobuf.Any of a
// google.rpc.Status.
package grpcstub
