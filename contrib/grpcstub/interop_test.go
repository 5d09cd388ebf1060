package grpcstub

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

// fatalLogger makes of grpclog's Fatal, by which grpc-go's interoperability cases
// fail, the end of the test that runs.
type fatalLogger struct {
	grpclog.LoggerV2
	t atomic.Pointer[testing.T]
}

// logger is grpclog's, from before anything uses it.
var logger = func() *fatalLogger {
	l := &fatalLogger{LoggerV2: grpclog.NewLoggerV2(io.Discard, io.Discard, os.Stderr)}
	grpclog.SetLoggerV2(l)
	return l
}()

func (l *fatalLogger) fatal(text string) {
	if t := l.t.Load(); t != nil {
		t.Fatal(text)
	}
	panic(text)
}

func (l *fatalLogger) Fatal(args ...any)                 { l.fatal(fmt.Sprint(args...)) }
func (l *fatalLogger) Fatalln(args ...any)               { l.fatal(fmt.Sprint(args...)) }
func (l *fatalLogger) Fatalf(format string, args ...any) { l.fatal(fmt.Sprintf(format, args...)) }

// The interoperability cases of grpc-go, as they are
// (https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md).
// Not here: those of credentials (compute_engine_creds, jwt_token_creds,
// oauth2_auth_token, per_rpc_creds ...), for there are no per-RPC credentials; of
// load balancing (pick_first_unary, rpc_soak, channel_soak, orca_*), for there are
// no channels; and those about HTTP/2 and compression.
func TestInteroperabilityCases(t *testing.T) {
	type client = testgrpc.TestServiceClient
	cases := map[string]func(context.Context, client){
		"empty_unary":                 func(ctx context.Context, c client) { interop.DoEmptyUnaryCall(ctx, c) },
		"large_unary":                 func(ctx context.Context, c client) { interop.DoLargeUnaryCall(ctx, c) },
		"client_streaming":            func(ctx context.Context, c client) { interop.DoClientStreaming(ctx, c) },
		"server_streaming":            func(ctx context.Context, c client) { interop.DoServerStreaming(ctx, c) },
		"ping_pong":                   func(ctx context.Context, c client) { interop.DoPingPong(ctx, c) },
		"empty_stream":                func(ctx context.Context, c client) { interop.DoEmptyStream(ctx, c) },
		"timeout_on_sleeping_server":  func(ctx context.Context, c client) { interop.DoTimeoutOnSleepingServer(ctx, c) },
		"cancel_after_begin":          func(ctx context.Context, c client) { interop.DoCancelAfterBegin(ctx, c) },
		"cancel_after_first_response": func(ctx context.Context, c client) { interop.DoCancelAfterFirstResponse(ctx, c) },
		"custom_metadata":             func(ctx context.Context, c client) { interop.DoCustomMetadata(ctx, c) },
		"status_code_and_message":     func(ctx context.Context, c client) { interop.DoStatusCodeAndMessage(ctx, c) },
		"special_status_message":      func(ctx context.Context, c client) { interop.DoSpecialStatusMessage(ctx, c) },
	}
	bothWays(t, func(t *testing.T, b backend) {
		cc := b.start(t, &setup{register: func(r grpc.ServiceRegistrar) {
			testgrpc.RegisterTestServiceServer(r, interop.NewTestServer())
		}})
		run := func(name string, f func(ctx context.Context)) {
			t.Run(name, func(t *testing.T) {
				logger.t.Store(t)
				defer logger.t.Store(nil)
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				defer cancel()
				f(ctx)
			})
		}
		for name, f := range cases {
			run(name, func(ctx context.Context) { f(ctx, testgrpc.NewTestServiceClient(cc)) })
		}
		run("unimplemented_service", func(ctx context.Context) {
			interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(cc))
		})
		t.Run("unimplemented_method", func(t *testing.T) { // grpc-go's takes a *grpc.ClientConn
			var none, nothing testgrpc.Empty
			err := cc.Invoke(within(t), "/grpc.testing.TestService/UnimplementedCall", &none, &nothing)
			if status.Code(err) != codes.Unimplemented {
				t.Errorf("Invoke: %v, want code %v", err, codes.Unimplemented)
			}
		})
	})
}
