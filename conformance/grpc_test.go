package conformance

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// echoDesc is a service whose method "echo" returns each message of a stream.
var echoDesc = &grpc.ServiceDesc{
	ServiceName: "conformance.Echo",
	HandlerType: (*any)(nil),
	Streams: []grpc.StreamDesc{{
		StreamName:    "echo",
		ClientStreams: true,
		ServerStreams: true,
		Handler: func(_ any, stream grpc.ServerStream) error {
			for {
				var m wrapperspb.BytesValue
				if err := stream.RecvMsg(&m); err == io.EOF {
					stream.SetTrailer(metadata.Pairs("end", "well"))
					return nil
				} else if err != nil {
					return err
				}
				if err := stream.SendMsg(&m); err != nil {
					return err
				}
			}
		},
	}},
}

// overGRPC runs body with a client of a grpc-go server, both of which know
// nothing but a listener and a dialler.
func overGRPC(t *testing.T, body func(t *testing.T, client *grpc.ClientConn, h *health.Server, server *grpc.Server)) {
	overTransports(t, func(t *testing.T, transport string) {
		l := newTunnel(t, transport)
		server, h := grpc.NewServer(), health.NewServer()
		healthpb.RegisterHealthServer(server, h)
		server.RegisterService(echoDesc, nil)
		served := make(chan error, 1)
		go func() { served <- server.Serve(l) }()
		client, err := grpc.NewClient("passthrough:///plugin",
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.dial(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := client.Close(); err != nil {
				t.Error(err)
			}
			server.GracefulStop()
			if err := <-served; err != nil {
				t.Error("Serve: ", err)
			}
		})
		body(t, client, h, server)
	})
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestGRPCUnary(t *testing.T) {
	overGRPC(t, func(t *testing.T, client *grpc.ClientConn, _ *health.Server, _ *grpc.Server) {
		ctx, c := testContext(t), healthpb.NewHealthClient(client)
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				for range 20 {
					r, err := c.Check(ctx, &healthpb.HealthCheckRequest{})
					if err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
						t.Error(r, err)
						return
					}
				}
				if _, err := c.Check(ctx, &healthpb.HealthCheckRequest{Service: "none"}); status.Code(err) != codes.NotFound {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
}

func TestGRPCServerStream(t *testing.T) {
	overGRPC(t, func(t *testing.T, client *grpc.ClientConn, h *health.Server, _ *grpc.Server) {
		ctx, cancel := context.WithCancel(testContext(t))
		watch, err := healthpb.NewHealthClient(client).Watch(ctx, &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			want := healthpb.HealthCheckResponse_ServingStatus(1 + i%2)
			h.SetServingStatus("", want)
			if r, err := watch.Recv(); err != nil || r.Status != want {
				t.Fatalf("%v, want %v, %v", r, want, err)
			}
		}
		cancel()
		if _, err := watch.Recv(); status.Code(err) != codes.Canceled {
			t.Error(err)
		}
	})
}

func TestGRPCBidirectional(t *testing.T) {
	overGRPC(t, func(t *testing.T, client *grpc.ClientConn, _ *health.Server, _ *grpc.Server) {
		ctx := testContext(t)
		var wg sync.WaitGroup
		for g := range 16 {
			wg.Go(func() {
				stream, err := client.NewStream(ctx, &echoDesc.Streams[0], "/conformance.Echo/echo")
				if err != nil {
					t.Error(err)
					return
				}
				message := func(i int) []byte { return bytes.Repeat([]byte{byte(g), byte(i)}, 1+i*2000) }
				const n = 50
				sent := make(chan error, 1)
				go func() {
					for i := range n {
						if err := stream.SendMsg(wrapperspb.Bytes(message(i))); err != nil {
							sent <- fmt.Errorf("message %d: %w", i, err)
							return
						}
					}
					sent <- stream.CloseSend()
				}()
				for i := range n {
					var m wrapperspb.BytesValue
					if err := stream.RecvMsg(&m); err != nil || !bytes.Equal(m.Value, message(i)) {
						t.Errorf("message %d of %d bytes: %v", i, len(m.Value), err)
						return
					}
				}
				if err := stream.RecvMsg(new(wrapperspb.BytesValue)); err != io.EOF {
					t.Error(err)
				}
				if err := <-sent; err != nil {
					t.Error(err)
				}
				if got := stream.Trailer().Get("end"); len(got) != 1 || got[0] != "well" {
					t.Error(stream.Trailer())
				}
			})
		}
		wg.Wait()
	})
}

// A server that stops at once is a broken connection to the client, and no more.
func TestGRPCServerStops(t *testing.T) {
	overGRPC(t, func(t *testing.T, client *grpc.ClientConn, _ *health.Server, server *grpc.Server) {
		stream, err := client.NewStream(testContext(t), &echoDesc.Streams[0], "/conformance.Echo/echo")
		if err == nil {
			err = stream.SendMsg(wrapperspb.Bytes(nil))
		}
		if err == nil {
			err = stream.RecvMsg(new(wrapperspb.BytesValue))
		}
		if err != nil {
			t.Fatal(err)
		}
		server.Stop()
		if err := stream.RecvMsg(new(wrapperspb.BytesValue)); status.Code(err) != codes.Unavailable {
			t.Error(err)
		}
	})
}
