package grpcstub

import (
	"context"
	"fmt"
	"io"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plugwire/plugwire"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/examples/helloworld/helloworld"
	"google.golang.org/grpc/examples/route_guide/routeguide"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/reflection"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
)

func TestHelloWorld(t *testing.T) {
	bothWays(t, func(t *testing.T, b backend) {
		client := helloworld.NewGreeterClient(b.start(t, &setup{register: func(r grpc.ServiceRegistrar) { helloworld.RegisterGreeterServer(r, greeter{}) }}))
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				for j := range 50 {
					name := fmt.Sprint("caller ", i, j)
					if r, err := client.SayHello(within(t), &helloworld.HelloRequest{Name: name}); err != nil || r.GetMessage() != "Hello "+name {
						t.Errorf("%s: %v, %v", name, r, err)
					}
				}
			})
		}
		wg.Wait()
	})
}

// guide is a server of grpc-go's route guide, which has a method of each kind.
type guide struct {
	routeguide.UnimplementedRouteGuideServer
}

func (guide) GetFeature(_ context.Context, p *routeguide.Point) (*routeguide.Feature, error) {
	return &routeguide.Feature{Name: "here", Location: p}, nil
}

func (guide) ListFeatures(r *routeguide.Rectangle, ss routeguide.RouteGuide_ListFeaturesServer) error {
	for i := r.GetLo().GetLatitude(); i < r.GetHi().GetLatitude(); i++ {
		if err := ss.Send(&routeguide.Feature{Location: &routeguide.Point{Latitude: i}}); err != nil {
			return err
		}
	}
	return nil
}

func (guide) RecordRoute(ss routeguide.RouteGuide_RecordRouteServer) error {
	for n := int32(0); ; n++ {
		if _, err := ss.Recv(); err == io.EOF {
			return ss.SendAndClose(&routeguide.RouteSummary{PointCount: n})
		} else if err != nil {
			return err
		}
	}
}

func (guide) RouteChat(ss routeguide.RouteGuide_RouteChatServer) error {
	for {
		n, err := ss.Recv()
		if err != nil {
			return end(err)
		}
		if err := ss.Send(n); err != nil {
			return err
		}
	}
}

func TestRouteGuide(t *testing.T) {
	bothWays(t, func(t *testing.T, b backend) {
		client := routeguide.NewRouteGuideClient(b.start(t, &setup{register: func(r grpc.ServiceRegistrar) { routeguide.RegisterRouteGuideServer(r, guide{}) }}))
		ctx := within(t)
		if f, err := client.GetFeature(ctx, &routeguide.Point{Latitude: 7}); err != nil || f.GetLocation().GetLatitude() != 7 {
			t.Errorf("GetFeature: %v, %v", f, err)
		}
		const many = 5000 // more than a window
		list, err := client.ListFeatures(ctx, &routeguide.Rectangle{Lo: &routeguide.Point{}, Hi: &routeguide.Point{Latitude: many}})
		if err != nil {
			t.Fatal(err)
		}
		for i := range int32(many) {
			if f, err := list.Recv(); err != nil || f.GetLocation().GetLatitude() != i {
				t.Fatalf("feature %d: %v, %v", i, f, err)
			}
		}
		_, err = list.Recv()
		wantEOF(t, err)
		record, err := client.RecordRoute(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i := range int32(many) {
			if err := record.Send(&routeguide.Point{Latitude: i}); err != nil {
				t.Fatal(err)
			}
		}
		if s, err := record.CloseAndRecv(); err != nil || s.GetPointCount() != many {
			t.Errorf("RecordRoute: %v, %v", s, err)
		}
		chat, err := client.RouteChat(ctx)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for i := range many {
				if err := chat.Send(&routeguide.RouteNote{Message: fmt.Sprint(i)}); err != nil {
					t.Errorf("note %d: %v", i, err)
				}
			}
			chat.CloseSend()
		}()
		for i := range many {
			if n, err := chat.Recv(); err != nil || n.GetMessage() != fmt.Sprint(i) {
				t.Fatalf("note %d: %v, %v", i, n, err)
			}
		}
		_, err = chat.Recv()
		wantEOF(t, err)
	})
}

func TestHealthService(t *testing.T) {
	bothWays(t, func(t *testing.T, b backend) {
		server := health.NewServer()
		client := healthpb.NewHealthClient(b.start(t, &setup{register: func(r grpc.ServiceRegistrar) { healthpb.RegisterHealthServer(r, server) }}))
		if r, err := client.Check(within(t), &healthpb.HealthCheckRequest{}); err != nil || r.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("Check: %v, %v", r, err)
		}
		if _, err := client.Check(within(t), &healthpb.HealthCheckRequest{Service: "none"}); status.Code(err) != codes.NotFound {
			t.Errorf("Check of none: %v", err)
		}
		ctx, cancel := context.WithCancel(within(t))
		watch, err := client.Watch(ctx, &healthpb.HealthCheckRequest{Service: "s"})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []healthpb.HealthCheckResponse_ServingStatus{healthpb.HealthCheckResponse_SERVICE_UNKNOWN,
			healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING} {
			if want != healthpb.HealthCheckResponse_SERVICE_UNKNOWN {
				server.SetServingStatus("s", want)
			}
			if r, err := watch.Recv(); err != nil || r.GetStatus() != want {
				t.Errorf("Watch: %v, %v, want %v", r, err, want)
			}
		}
		cancel()
		if _, err := watch.Recv(); status.Code(err) != codes.Canceled {
			t.Errorf("Watch: %v", err)
		}
		server.Shutdown()
	})
}

func TestReflectionListsServices(t *testing.T) {
	cc, _ := startStub(t, &setup{register: func(r grpc.ServiceRegistrar) {
		helloworld.RegisterGreeterServer(r, greeter{})
		reflection.RegisterV1(r.(reflection.GRPCServer))
	}})
	stream, err := reflectionpb.NewServerReflectionClient(cc).ServerReflectionInfo(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	r, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range r.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	if !slices.Contains(names, "helloworld.Greeter") {
		t.Errorf("got %v", names)
	}
	stream.CloseSend()
	_, err = stream.Recv()
	wantEOF(t, err)
}

func TestInterceptors(t *testing.T) {
	bothWays(t, func(t *testing.T, b backend) {
		var (
			mu  sync.Mutex
			log []string
		)
		note := func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			log = append(log, fmt.Sprintf(format, args...))
		}
		unaryServer := func(name string) grpc.UnaryServerInterceptor {
			return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
				note("%s %s", name, info.FullMethod)
				return handler(context.WithValue(ctx, ctxKey(name), "seen"), req)
			}
		}
		streamServer := func(name string) grpc.StreamServerInterceptor {
			return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
				note("%s %s %v %v", name, info.FullMethod, info.IsClientStream, info.IsServerStream)
				return handler(srv, ss)
			}
		}
		unaryClient := func(name string) grpc.UnaryClientInterceptor {
			return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
				note("%s %s", name, method)
				return invoker(metadata.AppendToOutgoingContext(ctx, "by", name), method, req, reply, cc, opts...)
			}
		}
		streamClient := func(name string) grpc.StreamClientInterceptor {
			return func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
				note("%s %s", name, method)
				return streamer(metadata.AppendToOutgoingContext(ctx, "by", name), desc, cc, method, opts...)
			}
		}
		by := func(ctx context.Context) {
			md, _ := metadata.FromIncomingContext(ctx)
			note("handler %v %v", md["by"], ctx.Value(ctxKey("s2")))
		}
		client := (&service{
			unary:  func(ctx context.Context, in *request) (*response, error) { by(ctx); return &response{}, nil },
			duplex: func(ss duplexServer) error { by(ss.Context()); return nil },
		}).client(t, b, func(s *setup) {
			s.unaryServer = []grpc.UnaryServerInterceptor{unaryServer("s1"), unaryServer("s2"), unaryServer("s3")}
			s.streamServer = []grpc.StreamServerInterceptor{streamServer("s1"), streamServer("s2"), streamServer("s3")}
			s.unaryClient = []grpc.UnaryClientInterceptor{unaryClient("c1"), unaryClient("c2")}
			s.streamClient = []grpc.StreamClientInterceptor{streamClient("c1"), streamClient("c2")}
		})
		if _, err := client.UnaryCall(within(t), &request{}); err != nil {
			t.Fatal(err)
		}
		stream, err := client.FullDuplexCall(within(t))
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		wantEOF(t, err)
		const u, d = testgrpc.TestService_UnaryCall_FullMethodName, testgrpc.TestService_FullDuplexCall_FullMethodName
		want := []string{"c1 " + u, "c2 " + u, "s1 " + u, "s2 " + u, "s3 " + u, "handler [c1 c2] seen",
			"c1 " + d, "c2 " + d, "s1 " + d + " true true", "s2 " + d + " true true", "s3 " + d + " true true", "handler [c1 c2] <nil>"}
		if !slices.Equal(log, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(log, "\n"), strings.Join(want, "\n"))
		}
	})
}

type ctxKey string

func TestPeers(t *testing.T) {
	check := func(who string, p *peer.Peer) {
		t.Helper()
		info, ok := p.AuthInfo.(AuthInfo)
		if !ok || info.AuthType() != "plugwire" || info.Peer.Transport != "unix" || p.Addr == nil || p.Addr.Network() != "unix" {
			t.Errorf("%s: got %+v", who, p)
		}
		if ok && info.Peer.Verified && info.Peer.UID != os.Getuid() {
			t.Errorf("%s: got %v", who, info.Peer)
		}
		if err := credentials.CheckSecurityLevel(p.AuthInfo, credentials.PrivacyAndIntegrity); err != nil {
			t.Errorf("%s: %v", who, err)
		}
	}
	server := func(ctx context.Context) {
		p, ok := peer.FromContext(ctx)
		if !ok {
			t.Fatal("no peer in the handler's context")
		}
		check("server", p)
		if m, ok := grpc.Method(ctx); !ok || !strings.HasPrefix(m, "/grpc.testing.TestService/") {
			t.Errorf("Method: %q", m)
		}
	}
	client := (&service{
		unary:  func(ctx context.Context, in *request) (*response, error) { server(ctx); return &response{}, nil },
		duplex: func(ss duplexServer) error { server(ss.Context()); return nil },
	}).client(t, backends[0])
	var p peer.Peer
	if _, err := client.UnaryCall(within(t), &request{}, grpc.Peer(&p)); err != nil {
		t.Fatal(err)
	}
	check("client", &p)
	p = peer.Peer{}
	stream, err := client.FullDuplexCall(within(t), grpc.Peer(&p))
	if err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	wantEOF(t, err)
	check("client", &p)
}

func TestOnFinish(t *testing.T) {
	bothWays(t, func(t *testing.T, b backend) {
		client := (&service{
			unary: func(_ context.Context, in *request) (*response, error) { return nil, status.Error(codes.NotFound, "") },
			duplex: func(ss duplexServer) error {
				in, err := ss.Recv()
				if err != nil {
					return err
				}
				return status.Error(codes.Code(in.ResponseType), "")
			},
		}).client(t, b)
		var ends []error
		finished := make(chan struct{}, 8)
		opt := grpc.OnFinish(func(err error) { ends = append(ends, err); finished <- struct{}{} })
		client.UnaryCall(within(t), &request{}, opt)
		<-finished
		for _, code := range []codes.Code{codes.OK, codes.Aborted} {
			stream, err := client.FullDuplexCall(within(t), opt)
			if err != nil {
				t.Fatal(err)
			}
			stream.Send(&item{ResponseType: testgrpc.PayloadType(code)})
			stream.Recv()
			stream.Recv()
			<-finished
		}
		ctx, cancel := context.WithCancel(within(t))
		if _, err := client.FullDuplexCall(ctx, opt); err != nil { // and never asked
			t.Fatal(err)
		}
		cancel()
		<-finished
		var got []codes.Code
		for _, err := range ends {
			got = append(got, status.Code(err))
		}
		if want := []codes.Code{codes.NotFound, codes.OK, codes.Aborted, codes.Canceled}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

func TestOptionsThatChangeTheCallAreRefused(t *testing.T) {
	client := (&service{
		unary: func(_ context.Context, in *request) (*response, error) { return &response{}, nil },
	}).client(t, backends[0])
	for name, opt := range map[string]grpc.CallOption{
		"credentials": grpc.PerRPCCredentials(nil),
		"codec":       grpc.ForceCodec(nil),
		"subtype":     grpc.CallContentSubtype("json"),
	} {
		if _, err := client.UnaryCall(within(t), &request{}, opt); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := client.FullDuplexCall(within(t), opt); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s, of a stream: %v", name, err)
		}
	}
	if _, err := client.UnaryCall(within(t), &request{}, grpc.WaitForReady(true), grpc.UseCompressor("gzip"), grpc.CallContentSubtype("proto"), grpc.EmptyCallOption{}); err != nil {
		t.Error(err)
	}
}

// What is registered wrongly is a mistake of the program.
func TestRegistrationPanics(t *testing.T) {
	mux := plugwire.NewMux()
	s := NewServer(mux, nil)
	helloworld.RegisterGreeterServer(s, greeter{})
	for name, f := range map[string]func(){
		"twice":      func() { helloworld.RegisterGreeterServer(s, greeter{}) },
		"wrong type": func() { s.RegisterService(&routeguide.RouteGuide_ServiceDesc, greeter{}) },
		"nil mux":    func() { NewServer(nil, nil) },
		"nil caller": func() { NewClient(nil, nil) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
	if got, want := s.GetServiceInfo()["helloworld.Greeter"].Methods, []grpc.MethodInfo{{Name: "SayHello"}}; !reflect.DeepEqual(got, want) {
		t.Errorf("GetServiceInfo: %v", got)
	}
}

// The context of a handler works as any: what is derived from it ends with it,
// without a goroutine of its own.
func TestHandlersContext(t *testing.T) {
	type result struct {
		goroutines int
		ended      bool
	}
	results := make(chan result, 1)
	client := (&service{unary: func(ctx context.Context, in *request) (*response, error) {
		before := runtime.NumGoroutine()
		derived, cancel := context.WithTimeout(ctx, time.Hour)
		defer cancel()
		r := result{goroutines: runtime.NumGoroutine() - before}
		<-derived.Done()
		r.ended = context.Cause(derived) != nil
		results <- r
		return nil, ctx.Err()
	}}).client(t, backends[0])
	ctx, cancel := context.WithTimeout(within(t), 50*time.Millisecond)
	defer cancel()
	client.UnaryCall(ctx, &request{})
	if r := <-results; r.goroutines > 0 || !r.ended {
		t.Errorf("got %+v", r)
	}
}

// Handlers call back by the connection they were called on.
func TestCallback(t *testing.T) {
	cfg := &plugwire.Config{Mux: plugwire.NewMux()}
	helloworld.RegisterGreeterServer(NewServer(cfg.Mux, nil), greeter{})
	client := (&service{unary: func(ctx context.Context, in *request) (*response, error) {
		info, _ := plugwire.InfoFromContext(ctx)
		r, err := helloworld.NewGreeterClient(NewClient(info.Conn, nil)).SayHello(ctx, &helloworld.HelloRequest{Name: "back"})
		return &response{Username: r.GetMessage()}, err
	}}).client(t, backends[0], func(s *setup) { s.clientCfg = cfg })
	if r, err := client.UnaryCall(within(t), &request{}); err != nil || r.GetUsername() != "Hello back" {
		t.Errorf("got %v, %v", r, err)
	}
}

// A handler that panics, or returns a value that is no message, ends its call alone.
func TestHandlersThatFailBadly(t *testing.T) {
	client := (&service{unary: func(_ context.Context, in *request) (*response, error) {
		switch in.ResponseSize {
		case 1:
			panic("no")
		case 2:
			return nil, nil
		case 3:
			return &response{Username: "\xff"}, nil
		}
		return &response{}, nil
	}}).client(t, backends[0])
	for i, want := range []codes.Code{codes.OK, codes.Internal, codes.OK, codes.Internal, codes.OK} {
		if _, err := client.UnaryCall(within(t), &request{ResponseSize: int32(i)}); status.Code(err) != want {
			t.Errorf("%d: %v, want code %v", i, err, want)
		}
	}
	cc, conn := startStub(t, &setup{register: func(r grpc.ServiceRegistrar) { helloworld.RegisterGreeterServer(r, greeter{}) }})
	if _, err := conn.Call(within(t), helloworld.Greeter_SayHello_FullMethodName, []byte("\xff")); plugwire.CodeOf(err) != plugwire.Internal {
		t.Errorf("a request that does not decode: %v", err)
	}
	if err := cc.Invoke(within(t), helloworld.Greeter_SayHello_FullMethodName, 7, &helloworld.HelloReply{}); status.Code(err) != codes.Internal {
		t.Errorf("a request that is no message: %v", err)
	}
}
