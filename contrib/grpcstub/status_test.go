package grpcstub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/plugwire/plugwire"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// someErrors are errors of handlers, by what they are.
func someErrors(t *testing.T) map[string]error {
	all := map[string]error{
		"plain":          errPlain,
		"canceled":       context.Canceled,
		"deadline":       fmt.Errorf("waiting: %w", context.DeadlineExceeded),
		"wrapped status": fmt.Errorf("while working: %w", status.Error(codes.NotFound, "no such thing")),
		"no message":     status.Error(codes.Aborted, ""),
		"long message":   status.Error(codes.Internal, strings.Repeat("long ", 900)),
		"unicode":        status.Error(codes.Internal, "\t\n ☺ 😈 %"),
		"code 42":        status.Error(42, "of no kind"),
		"code 300":       status.Error(300, "of the application"),
		"code 70000":     status.Error(70000, "of many bits"),
	}
	for c := codes.Code(1); c <= codes.Unauthenticated; c++ {
		all[c.String()] = status.Error(c, "the message")
	}
	st, err := status.New(codes.ResourceExhausted, "detailed").WithDetails(
		&errdetails.QuotaFailure{Violations: []*errdetails.QuotaFailure_Violation{{Subject: "you", Description: "too much"}}},
		&errdetails.RequestInfo{RequestId: "7", ServingData: strings.Repeat("x", 3000)})
	if err != nil {
		t.Fatal(err)
	}
	all["details"] = st.Err()
	return all
}

func TestStatusesTravel(t *testing.T) {
	bothWays(t, func(t *testing.T, b backend) {
		all := someErrors(t)
		s := &service{
			unary: func(_ context.Context, in *request) (*response, error) {
				return nil, all[in.GetResponseStatus().GetMessage()]
			},
			duplex: func(ss duplexServer) error {
				in, err := ss.Recv()
				if err != nil {
					return err
				}
				if err := ss.Send(&reply{}); err != nil {
					return err
				}
				return all[in.GetResponseStatus().GetMessage()]
			},
		}
		client := s.client(t, b)
		for name, sent := range all {
			want, ok := status.FromError(sent)
			if !ok {
				want = status.FromContextError(sent)
			}
			check := func(err error) {
				t.Helper()
				got, ok := status.FromError(err)
				if !ok || !proto.Equal(got.Proto(), want.Proto()) {
					t.Errorf("%s: got %v (%v), want %v", name, err, got.Details(), want)
				}
				if err.Error() != want.Err().Error() || !errors.Is(err, want.Err()) {
					t.Errorf("%s: the error %q is not %q", name, err, want.Err())
				}
			}
			echoed := &testgrpc.EchoStatus{Message: name}
			_, err := client.UnaryCall(within(t), &request{ResponseStatus: echoed})
			check(err)
			stream, err := client.FullDuplexCall(within(t))
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Send(&item{ResponseStatus: echoed}); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Errorf("%s: the message before the end: %v", name, err)
			}
			_, err = stream.Recv()
			check(err)
			_, err = stream.Recv()
			check(err)
		}
	})
}

// A handler that is not gRPC's has codes and details of its own.
func TestForeignErrorsKeepTheirDetail(t *testing.T) {
	sent := map[string]*plugwire.Error{
		"application's":         {Code: 300, Message: "of the application", Detail: []byte("its own")},
		"nearly marked":         {Code: plugwire.NotFound, Message: "not there", Detail: []byte(detailMark)},
		"marked, but no status": {Code: plugwire.NotFound, Message: "not there", Detail: []byte(detailMark + "\x12\x02\xff\xff")},
		"marked as OK":          {Code: plugwire.NotFound, Message: "not there", Detail: []byte(detailMark + "\x12\x00")},
		"no detail":             {Code: plugwire.NotFound, Message: "not there"},
		"odd text":              {Code: plugwire.NotFound, Message: "not \xff there"},
	}
	client, _ := startStub(t, &setup{plugwire: func(m *plugwire.Mux) {
		for name, e := range sent {
			m.HandleFunc("/call/"+name, func(context.Context, []byte) ([]byte, error) { return nil, e })
			m.HandleStream("/stream/"+name, func(*plugwire.Stream) error { return e })
		}
	}})
	for name, e := range sent {
		check := func(err error) {
			t.Helper()
			code := codes.Code(e.Code)
			if code > codes.Unauthenticated {
				code = codes.Unknown
			}
			if st, ok := status.FromError(err); !ok || st.Code() != code || st.Message() != strings.ToValidUTF8(e.Message, "\uFFFD") {
				t.Errorf("%s: got %v, want code %v", name, err, code)
			}
			var got *plugwire.Error
			if !errors.As(err, &got) || got.Code != e.Code || string(got.Detail) != string(e.Detail) {
				t.Errorf("%s: %v hides %+v", name, err, got)
			}
		}
		check(client.Invoke(within(t), "/call/"+name, &request{}, &response{}))
		stream, err := client.NewStream(within(t), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/stream/"+name)
		if err != nil {
			t.Fatal(err)
		}
		check(stream.RecvMsg(&response{}))
	}
}

func TestErrorsOfPlugwirePassThroughHandlers(t *testing.T) {
	s := &service{unary: func(context.Context, *request) (*response, error) {
		return nil, fmt.Errorf("wrapped: %w", &plugwire.Error{Code: 300, Message: "mine", Detail: []byte("detail")})
	}}
	_, conn := startStub(t, &setup{register: func(r grpc.ServiceRegistrar) { testgrpc.RegisterTestServiceServer(r, s) }})
	_, err := conn.Call(within(t), testgrpc.TestService_UnaryCall_FullMethodName, nil)
	var e *plugwire.Error
	if !errors.As(err, &e) || e.Code != 300 || string(e.Detail) != "detail" {
		t.Errorf("got %v", err)
	}
}

func TestErrorsSayWhetherTheRequestRan(t *testing.T) {
	s := &service{unary: func(context.Context, *request) (*response, error) { return nil, errPlain }}
	client, conn := startStub(t, &setup{register: func(r grpc.ServiceRegistrar) { testgrpc.RegisterTestServiceServer(r, s) }})
	err := client.Invoke(within(t), "/none/None", &request{}, &response{})
	if status.Code(err) != codes.Unimplemented || !plugwire.NotRun(err) {
		t.Errorf("of a method that is not there: %v, NotRun %v", err, plugwire.NotRun(err))
	}
	_, err = client.NewStream(within(t), &grpc.StreamDesc{ServerStreams: true}, "/none/None")
	if status.Code(err) != codes.Unimplemented || !plugwire.NotRun(err) {
		t.Errorf("of a stream that is not there: %v, NotRun %v", err, plugwire.NotRun(err))
	}
	if err := client.Invoke(within(t), testgrpc.TestService_UnaryCall_FullMethodName, &request{}, &response{}); plugwire.NotRun(err) {
		t.Errorf("of a handler's error: %v, NotRun", err)
	}
	conn.Close()
	err = client.Invoke(within(t), testgrpc.TestService_UnaryCall_FullMethodName, &request{}, &response{})
	if status.Code(err) != codes.Unavailable || !plugwire.NotRun(err) {
		t.Errorf("after Close: %v, NotRun %v", err, plugwire.NotRun(err))
	}
}

// The other side's farewell is io.EOF to plugwire. A stream that it cuts short
// must not look like one that ended well.
func TestBrokenStreamIsNotAtItsEnd(t *testing.T) {
	conns := make(chan *plugwire.Conn, 1)
	s := &service{duplex: func(ss duplexServer) error {
		ss.Send(&reply{})
		<-ss.Context().Done()
		return ss.Context().Err()
	}}
	client, _ := startStub(t, &setup{
		register: func(r grpc.ServiceRegistrar) { testgrpc.RegisterTestServiceServer(r, s) },
		srvCfg:   &plugwire.Config{OnConn: func(c *plugwire.Conn) { conns <- c }},
	})
	stream, err := testgrpc.NewTestServiceClient(client).FullDuplexCall(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	(<-conns).Close()
	_, err = stream.Recv()
	if status.Code(err) != codes.Unavailable || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// Details that fit no frame are left out, and the rest of the status is not.
func TestDetailsThatDoNotFit(t *testing.T) {
	st, err := status.New(codes.NotFound, "the message").WithDetails(&errdetails.DebugInfo{Detail: strings.Repeat("x", 100<<10)})
	if err != nil {
		t.Fatal(err)
	}
	client := (&service{
		unary:  func(context.Context, *request) (*response, error) { return nil, st.Err() },
		duplex: func(duplexServer) error { return st.Err() },
	}).client(t, backends[0])
	check := func(err error) {
		t.Helper()
		if got := status.Convert(err); got.Code() != codes.NotFound || !strings.HasPrefix(got.Message(), "the message") {
			t.Errorf("got %v", err)
		}
	}
	_, err = client.UnaryCall(within(t), &request{})
	check(err)
	stream, err := client.FullDuplexCall(within(t))
	if err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	check(err)
}

func TestMethodsOfTheOtherKindAreUnimplemented(t *testing.T) {
	client, _ := startStub(t, &setup{register: func(r grpc.ServiceRegistrar) {
		testgrpc.RegisterTestServiceServer(r, &service{})
	}})
	if err := client.Invoke(within(t), testgrpc.TestService_FullDuplexCall_FullMethodName, &request{}, &response{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a stream that is called: %v", err)
	}
	stream, err := client.NewStream(within(t), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, testgrpc.TestService_UnaryCall_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(&response{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a call that is opened: %v", err)
	}
}
