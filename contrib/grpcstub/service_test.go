package grpcstub

import (
	"context"
	"errors"
	"io"
	"testing"

	"google.golang.org/grpc"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
)

type (
	request      = testgrpc.SimpleRequest
	response     = testgrpc.SimpleResponse
	duplexServer = testgrpc.TestService_FullDuplexCallServer
	inputServer  = testgrpc.TestService_StreamingInputCallServer
	outputServer = testgrpc.TestService_StreamingOutputCallServer
	item         = testgrpc.StreamingOutputCallRequest
	reply        = testgrpc.StreamingOutputCallResponse
	part         = testgrpc.StreamingInputCallRequest
	sum          = testgrpc.StreamingInputCallResponse
)

// service is a test service of functions. Those that are nil are unimplemented.
type service struct {
	testgrpc.UnimplementedTestServiceServer
	unary  func(context.Context, *request) (*response, error)
	duplex func(duplexServer) error
	input  func(inputServer) error
	output func(*item, outputServer) error
}

func (s *service) UnaryCall(ctx context.Context, in *request) (*response, error) {
	if s.unary == nil {
		return s.UnimplementedTestServiceServer.UnaryCall(ctx, in)
	}
	return s.unary(ctx, in)
}

func (s *service) FullDuplexCall(ss duplexServer) error                { return s.duplex(ss) }
func (s *service) StreamingInputCall(ss inputServer) error             { return s.input(ss) }
func (s *service) StreamingOutputCall(in *item, ss outputServer) error { return s.output(in, ss) }

// client serves s over a backend and returns a client of it.
func (s *service) client(t testing.TB, b backend, extra ...func(*setup)) testgrpc.TestServiceClient {
	x := &setup{register: func(r grpc.ServiceRegistrar) { testgrpc.RegisterTestServiceServer(r, s) }}
	for _, f := range extra {
		f(x)
	}
	return testgrpc.NewTestServiceClient(b.start(t, x))
}

// echo answers every message of a stream.
func echo(ss duplexServer) error {
	for {
		in, err := ss.Recv()
		if err != nil {
			return end(err)
		}
		if err := ss.Send(&reply{Payload: in.Payload}); err != nil {
			return err
		}
	}
}

// end is what a handler returns whose Recv has returned err.
func end(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

func payload(n int) *testgrpc.Payload {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7)
	}
	return &testgrpc.Payload{Body: b}
}

// wantEOF fails the test when a stream did not end well.
func wantEOF(t testing.TB, err error) {
	t.Helper()
	if err != io.EOF {
		t.Errorf("got %v, want io.EOF", err)
	}
}

var errPlain = errors.New("no status")
