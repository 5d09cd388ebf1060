package grpcstub

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/plugwire/plugwire"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Once the handler has returned, SendMsg says no more than io.EOF: RecvMsg tells why.
func TestSendingToAnEndedStream(t *testing.T) {
	bothWays(t, func(t *testing.T, b backend) {
		want := map[int32]codes.Code{0: codes.OK, 1: codes.NotFound, 2: codes.ResourceExhausted}
		client := (&service{
			duplex: func(ss duplexServer) error {
				in, err := ss.Recv()
				if err != nil {
					return err
				}
				return status.Error(want[int32(in.ResponseType)], "the reason")
			},
			input: func(ss inputServer) error { return status.Error(codes.NotFound, "the reason") },
		}).client(t, b)
		for kind, code := range want {
			stream, err := client.FullDuplexCall(within(t))
			if err != nil {
				t.Fatal(err)
			}
			m := &item{ResponseType: testgrpc.PayloadType(kind), Payload: payload(100)}
			for err = nil; err == nil; err = stream.Send(m) {
				time.Sleep(100 * time.Microsecond)
			}
			if err != io.EOF && code != codes.ResourceExhausted {
				t.Errorf("code %v: Send: %v, want io.EOF", code, err)
			}
			for range 2 {
				if _, err := stream.Recv(); status.Code(err) != code && !(code == codes.OK && err == io.EOF) {
					t.Errorf("code %v: Recv: %v", code, err)
				}
			}
		}
		stream, err := client.StreamingInputCall(within(t))
		if err != nil {
			t.Fatal(err)
		}
		for err = nil; err == nil; err = stream.Send(&part{}) {
			time.Sleep(100 * time.Microsecond)
		}
		wantEOF(t, err)
		if _, err := stream.CloseAndRecv(); status.Code(err) != codes.NotFound || status.Convert(err).Message() != "the reason" {
			t.Errorf("CloseAndRecv: %v", err)
		}
	})
}

// A method with one reply is good when there is one reply and a good status.
func TestClientStreamingHasOneReply(t *testing.T) {
	bothWays(t, func(t *testing.T, b backend) {
		var act func(ss grpc.ServerStream) error
		desc := &grpc.ServiceDesc{ServiceName: "s", Streams: []grpc.StreamDesc{{StreamName: "M", ClientStreams: true,
			Handler: func(_ any, ss grpc.ServerStream) error {
				for {
					if err := ss.RecvMsg(&part{}); err == io.EOF {
						return act(ss)
					} else if err != nil {
						return err
					}
				}
			}}}}
		cc := b.start(t, &setup{register: func(r grpc.ServiceRegistrar) { r.RegisterService(desc, nil) }})
		one := &sum{AggregatedPayloadSize: 7}
		for name, test := range map[string]struct {
			act  func(ss grpc.ServerStream) error
			want codes.Code
		}{
			"one":            {func(ss grpc.ServerStream) error { return ss.SendMsg(one) }, codes.OK},
			"none":           {func(ss grpc.ServerStream) error { return nil }, codes.Internal},
			"two":            {func(ss grpc.ServerStream) error { ss.SendMsg(one); return ss.SendMsg(one) }, codes.Internal},
			"one, and error": {func(ss grpc.ServerStream) error { ss.SendMsg(one); return status.Error(codes.Aborted, "") }, codes.Aborted},
			"error":          {func(ss grpc.ServerStream) error { return status.Error(codes.Aborted, "") }, codes.Aborted},
		} {
			act = test.act
			stream, err := cc.NewStream(within(t), &grpc.StreamDesc{ClientStreams: true}, "/s/M")
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				if err := stream.SendMsg(&part{}); err != nil {
					t.Fatal(err)
				}
			}
			stream.CloseSend()
			out := new(sum)
			if err := stream.RecvMsg(out); status.Code(err) != test.want || err == nil && out.AggregatedPayloadSize != 7 {
				t.Errorf("%s: %v, %v, want code %v", name, out, err, test.want)
			}
		}
	})
}

func TestSendAfterCloseSend(t *testing.T) {
	bothWays(t, func(t *testing.T, b backend) {
		client := (&service{duplex: echo}).client(t, b)
		stream, err := client.FullDuplexCall(within(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if err := stream.CloseSend(); err != nil {
			t.Errorf("a second CloseSend: %v", err)
		}
		if err := stream.Send(&item{}); status.Code(err) != codes.Internal {
			t.Errorf("Send after CloseSend: %v", err)
		}
		for err = nil; err == nil; _, err = stream.Recv() {
		}
	})
}

// The handler of a bidirectional stream runs before there is a message.
func TestHandlerRunsAtOnce(t *testing.T) {
	bothWays(t, func(t *testing.T, b backend) {
		ran := make(chan struct{})
		client := (&service{duplex: func(ss duplexServer) error { close(ran); return nil }}).client(t, b)
		stream, err := client.FullDuplexCall(within(t))
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-ran:
		case <-stream.Context().Done():
			t.Error("the handler did not run")
		}
		_, err = stream.Recv()
		wantEOF(t, err)
	})
}

func TestDeadlines(t *testing.T) {
	bothWays(t, func(t *testing.T, b backend) {
		heard := make(chan error, 1)
		wait := func(ctx context.Context) error {
			if _, ok := ctx.Deadline(); !ok {
				t.Error("the handler's context has no deadline")
			}
			<-ctx.Done()
			heard <- ctx.Err()
			return ctx.Err()
		}
		client := (&service{
			unary:  func(ctx context.Context, in *request) (*response, error) { return nil, wait(ctx) },
			duplex: func(ss duplexServer) error { return wait(ss.Context()) },
			output: func(_ *item, ss outputServer) error { return wait(ss.Context()) },
		}).client(t, b)
		for name, call := range map[string]func(ctx context.Context) error{
			"unary": func(ctx context.Context) error { _, err := client.UnaryCall(ctx, &request{}); return err },
			"duplex": func(ctx context.Context) error {
				stream, err := client.FullDuplexCall(ctx)
				if err == nil {
					_, err = stream.Recv()
				}
				return err
			},
			"output": func(ctx context.Context) error {
				stream, err := client.StreamingOutputCall(ctx, &item{})
				if err == nil {
					_, err = stream.Recv()
				}
				return err
			},
		} {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
			if err := call(ctx); status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("%s: %v", name, err)
			}
			if err := <-heard; err == nil {
				t.Errorf("%s: the handler's context did not end", name)
			}
			if err := call(ctx); status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("%s, with a deadline that has passed: %v", name, err)
			}
			cancel()
		}
	})
}

func TestCancellation(t *testing.T) {
	bothWays(t, func(t *testing.T, b backend) {
		running, heard := make(chan struct{}), make(chan struct{})
		wait := func(ctx context.Context) error {
			running <- struct{}{}
			<-ctx.Done()
			heard <- struct{}{}
			return ctx.Err()
		}
		client := (&service{
			unary:  func(ctx context.Context, in *request) (*response, error) { return nil, wait(ctx) },
			duplex: func(ss duplexServer) error { return wait(ss.Context()) },
		}).client(t, b)
		ctx, cancel := context.WithCancel(within(t))
		go func() { <-running; cancel(); <-heard }()
		if _, err := client.UnaryCall(ctx, &request{}); status.Code(err) != codes.Canceled || status.Convert(err).Message() != "context canceled" {
			t.Errorf("unary: %v", err)
		}
		ctx, cancel = context.WithCancel(within(t))
		defer cancel()
		stream, err := client.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		go func() { <-running; cancel(); <-heard }()
		if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
			t.Errorf("Recv: %v", err)
		}
		if err := stream.Send(&item{}); err != io.EOF {
			t.Errorf("Send: %v", err)
		}
		if md, err := stream.Header(); md != nil || err != nil {
			t.Errorf("Header: %v, %v", md, err)
		}
	})
}

// A client that loses interest and cancels holds nothing, on either side.
func TestAbandonedStreamsLeaveNothingBehind(t *testing.T) {
	client := (&service{duplex: echo, output: func(_ *item, ss outputServer) error {
		for {
			if err := ss.Send(&reply{Payload: payload(1000)}); err != nil {
				return err
			}
		}
	}}).client(t, backends[0], func(s *setup) {
		s.srvCfg = &plugwire.Config{Limits: plugwire.Limits{MaxCalls: 3}}
	})
	for i := range 300 {
		ctx, cancel := context.WithCancel(within(t))
		if i%2 == 0 {
			stream, err := client.FullDuplexCall(metadata.AppendToOutgoingContext(ctx, "k", "v"))
			if err != nil {
				t.Fatalf("stream %d: %v", i, err)
			}
			if i%4 == 0 {
				if err := stream.Send(&item{}); err != nil {
					t.Fatal(err)
				}
			}
		} else {
			stream, err := client.StreamingOutputCall(ctx, &item{})
			if err != nil {
				t.Fatalf("stream %d: %v", i, err)
			}
			if i%3 == 0 {
				if _, err := stream.Recv(); err != nil {
					t.Fatal(err)
				}
			}
		}
		cancel()
	}
}

// A message that this side cannot take or send ends the stream, and with it the handler.
func TestMessagesOverTheLimit(t *testing.T) {
	bothWays(t, func(t *testing.T, b backend) {
		client := (&service{
			unary:  func(_ context.Context, in *request) (*response, error) { return &response{Payload: in.Payload}, nil },
			duplex: echo,
		}).client(t, b)
		big := payload(1000)
		if _, err := client.UnaryCall(within(t), &request{Payload: big}, grpc.MaxCallSendMsgSize(999)); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("unary, sent: %v", err)
		}
		if _, err := client.UnaryCall(within(t), &request{Payload: big}, grpc.MaxCallRecvMsgSize(999)); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("unary, received: %v", err)
		}
		stream, err := client.FullDuplexCall(within(t), grpc.MaxCallSendMsgSize(999))
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&item{Payload: big}); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("stream, sent: %v", err)
		}
		stream, err = client.FullDuplexCall(within(t), grpc.MaxCallRecvMsgSize(999))
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&item{Payload: big}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("stream, received: %v", err)
		}
	})
	client := (&service{duplex: echo}).client(t, backends[0], func(s *setup) {
		s.srvCfg = &plugwire.Config{Limits: plugwire.Limits{MaxMessage: 100 << 10}}
	})
	stream, err := client.FullDuplexCall(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&item{Payload: payload(200 << 10)}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("more than the server takes: %v", err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("then: %v", err)
	}
}

func TestLargeMessages(t *testing.T) {
	client := (&service{
		unary:  func(_ context.Context, in *request) (*response, error) { return &response{Payload: in.Payload}, nil },
		duplex: echo,
	}).client(t, backends[0])
	ctx := within(t)
	stream, err := client.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, 4 << 10, 64<<10 - 8, 64 << 10, 1 << 20, 20 << 20, 100} {
		want := payload(n)
		out, err := client.UnaryCall(ctx, &request{Payload: want})
		if err != nil || string(out.GetPayload().GetBody()) != string(want.Body) {
			t.Fatalf("%d bytes: got %d, %v", n, len(out.GetPayload().GetBody()), err)
		}
		if err := stream.Send(&item{Payload: want}); err != nil {
			t.Fatal(err)
		}
		got, err := stream.Recv()
		if err != nil || string(got.GetPayload().GetBody()) != string(want.Body) {
			t.Fatalf("%d bytes on a stream: got %d, %v", n, len(got.GetPayload().GetBody()), err)
		}
	}
	stream.CloseSend()
	_, err = stream.Recv()
	wantEOF(t, err)
}
