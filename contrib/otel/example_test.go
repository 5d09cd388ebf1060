package otel_test

import (
	"context"
	"fmt"
	"log"

	"github.com/plugwire/plugwire"
	"github.com/plugwire/plugwire/contrib/otel"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

// A handler's span is below its caller's. A program that sets OpenTelemetry's global
// providers and propagator needs none of the options.
func Example() {
	exporter := tracetest.NewInMemoryExporter() // one that sends them somewhere
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
	opts := []otel.Option{
		otel.WithTracerProvider(provider),
		otel.WithPropagator(propagation.TraceContext{}),
	}

	mux := plugwire.NewMux()
	mux.Use(otel.Middleware(opts...))
	mux.HandleFunc("greet", func(ctx context.Context, name []byte) ([]byte, error) {
		trace.SpanFromContext(ctx).AddEvent("greeting")
		return append([]byte("hello, "), name...), nil
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
	reply, err := otel.Caller(conn, opts...).Call(ctx, "greet", []byte("world"))
	fmt.Println(string(reply), err)

	spans := exporter.GetSpans() // the handler's ends first
	for _, s := range spans {
		fmt.Println(s.Name, s.SpanKind, len(s.Events))
	}
	fmt.Println(spans[0].Parent.SpanID() == spans[1].SpanContext.SpanID())
	// Output:
	// hello, world <nil>
	// greet server 1
	// greet client 0
	// true
}
