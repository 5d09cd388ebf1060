package otel

import (
	"context"
	"errors"
	"maps"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/plugwire/plugwire"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

var background = context.Background()

// telemetry is what one side records.
type telemetry struct {
	spans  *tracetest.SpanRecorder
	reader *sdkmetric.ManualReader
	tracer trace.Tracer
	opts   []Option
}

func newTelemetry(more ...Option) *telemetry {
	x := &telemetry{spans: tracetest.NewSpanRecorder(), reader: sdkmetric.NewManualReader()}
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(x.spans))
	x.tracer = tracers.Tracer("test")
	x.opts = append([]Option{
		WithTracerProvider(tracers),
		WithMeterProvider(sdkmetric.NewMeterProvider(sdkmetric.WithReader(x.reader))),
		WithPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})),
	}, more...)
	return x
}

// ended waits until n spans have ended and returns them.
func (x *telemetry) ended(t *testing.T, n int) []sdktrace.ReadOnlySpan {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		spans := x.spans.Ended()
		if len(spans) >= n || time.Now().After(deadline) {
			if len(spans) != n {
				t.Fatalf("%d spans have ended, want %d", len(spans), n)
			}
			return spans
		}
	}
}

// points returns how many durations a histogram has by "method code".
func (x *telemetry) points(t *testing.T, name string) map[string]uint64 {
	t.Helper()
	var rm metricdata.ResourceMetrics
	if err := x.reader.Collect(background, &rm); err != nil {
		t.Fatal(err)
	}
	got := make(map[string]uint64)
	for _, scope := range rm.ScopeMetrics {
		for _, m := range scope.Metrics {
			h, ok := m.Data.(metricdata.Histogram[float64])
			if m.Name != name || m.Unit != "s" || !ok {
				t.Fatalf("metric %s in %s is a %T", m.Name, m.Unit, m.Data)
			}
			for _, p := range h.DataPoints {
				if p.Sum <= 0 || p.Sum > 60 {
					t.Errorf("%v took %v s", p.Attributes, p.Sum)
				}
				of := func(k string) string { v, _ := p.Attributes.Value(attribute.Key(k)); return v.String() }
				if of("rpc.system.name") != "plugwire" || of("network.transport") == "" {
					t.Errorf("attributes %v", p.Attributes)
				}
				got[of("rpc.method")+" "+of("rpc.response.status_code")] += p.Count
			}
		}
	}
	return got
}

func (x *telemetry) wantPoints(t *testing.T, name string, want map[string]uint64) {
	t.Helper()
	if got := x.points(t, name); !maps.Equal(got, want) {
		t.Errorf("%s: %v, want %v", name, got, want)
	}
}

// connect serves mux over a Unix socket, or TCP where there are none, and dials.
func connect(t *testing.T, mux *plugwire.Mux) *plugwire.Conn {
	t.Helper()
	server := &plugwire.Server{Mux: mux}
	l, err := server.Listen(plugwire.Transports()[0] + ":")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() { server.Close(); <-ended })
	c, err := plugwire.Dial(background, l.Addr().Network()+"://"+l.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); <-c.Done() })
	return c
}

func attr(s sdktrace.ReadOnlySpan, key string) string {
	for _, kv := range s.Attributes() {
		if string(kv.Key) == key {
			return kv.Value.String()
		}
	}
	return ""
}

// wantSpan fails the test unless s is so; parent may be invalid, for none.
func wantSpan(t *testing.T, s sdktrace.ReadOnlySpan, name string, kind trace.SpanKind, parent trace.SpanContext, code plugwire.Code, status codes.Code) {
	t.Helper()
	if s.Name() != name || s.SpanKind() != kind || attr(s, "rpc.method") != name || attr(s, "rpc.system.name") != "plugwire" {
		t.Errorf("span %s (%v) %v, want %s (%v)", s.Name(), s.SpanKind(), s.Attributes(), name, kind)
	}
	if s.Parent().SpanID() != parent.SpanID() || parent.IsValid() && s.SpanContext().TraceID() != parent.TraceID() {
		t.Errorf("%s (%v): parent %v, want %v", name, kind, s.Parent().SpanID(), parent.SpanID())
	}
	if got := attr(s, "rpc.response.status_code"); got != code.String() || s.Status().Code != status {
		t.Errorf("%s (%v): code %s, status %v; want %v, %v", name, kind, got, s.Status(), code, status)
	}
	if got, want := attr(s, "error.type"), map[bool]string{true: code.String()}[status == codes.Error]; got != want {
		t.Errorf("%s (%v): error.type %q, want %q", name, kind, got, want)
	}
	if !s.EndTime().After(s.StartTime()) {
		t.Errorf("%s (%v) took no time", name, kind)
	}
}

// testMux answers "ok", "missing", "broken", "panic" and "exit".
func testMux(server *telemetry) *plugwire.Mux {
	mux := plugwire.NewMux()
	mux.HandleFunc("ok", func(_ context.Context, req []byte) ([]byte, error) { return req, nil })
	mux.HandleFunc("missing", func(context.Context, []byte) ([]byte, error) {
		return nil, &plugwire.Error{Code: plugwire.NotFound, Message: "no such thing"}
	})
	mux.HandleFunc("broken", func(context.Context, []byte) ([]byte, error) {
		return nil, errors.New(strings.Repeat("x", 3<<10))
	})
	mux.HandleFunc("panic", func(context.Context, []byte) ([]byte, error) { panic("on purpose") })
	mux.HandleFunc("exit", func(context.Context, []byte) ([]byte, error) { runtime.Goexit(); return nil, nil })
	mux.Use(Middleware(server.opts...))
	return mux
}

func TestSpansOfCalls(t *testing.T) {
	for _, x := range []struct {
		method         string
		code           plugwire.Code
		client, server codes.Code
	}{
		{"ok", plugwire.OK, codes.Unset, codes.Unset},
		{"missing", plugwire.NotFound, codes.Error, codes.Unset},
		{"broken", plugwire.Unknown, codes.Error, codes.Error},
		{"panic", plugwire.Internal, codes.Error, codes.Error},
		{"exit", plugwire.Internal, codes.Error, codes.Error},
	} {
		client, server := newTelemetry(), newTelemetry()
		conn := connect(t, testMux(server))
		caller := Caller(conn, client.opts...)
		ctx, parent := client.tracer.Start(background, "parent")
		reply, err := caller.Call(ctx, x.method, []byte("hello"))
		if plugwire.CodeOf(err) != x.code || err == nil && string(reply) != "hello" {
			t.Errorf("%s: %q, %v", x.method, reply, err)
		}
		c := client.ended(t, 1)[0]
		wantSpan(t, c, x.method, trace.SpanKindClient, parent.SpanContext(), x.code, x.client)
		s := server.ended(t, 1)[0]
		wantSpan(t, s, x.method, trace.SpanKindServer, c.SpanContext(), x.code, x.server)
		if !s.Parent().IsRemote() {
			t.Errorf("%s: the handler's parent is local", x.method)
		}
		if len(s.Status().Description) > maxErrorText || len(c.Status().Description) > maxErrorText {
			t.Error("the error's text is not cut")
		}
		if conn.RemoteAddr().Network() == "unix" && (attr(s, "network.transport") != "unix" || attr(s, "plugwire.peer.uid") == "") {
			t.Errorf("the peer: %v", s.Attributes())
		}
		want := map[string]uint64{x.method + " " + x.code.String(): 1}
		client.wantPoints(t, "rpc.client.call.duration", want)
		server.wantPoints(t, "rpc.server.call.duration", want)
	}
}

// The handler's context has its span and the baggage, by which calls of its own
// are below it.
func TestHandlersSpanIsInItsContext(t *testing.T) {
	client, server := newTelemetry(), newTelemetry()
	mux := plugwire.NewMux()
	seen := make(chan trace.SpanContext, 2)
	mux.Handle("bare", plugwire.HandlerFunc(func(r *plugwire.Request, reply []byte) ([]byte, error) {
		seen <- trace.SpanContextFromContext(r.Context())
		return append(reply, baggage.FromContext(r.Context()).Member("user").Value()...), nil
	}))
	mux.HandleFunc("func", func(ctx context.Context, _ []byte) ([]byte, error) {
		seen <- trace.SpanContextFromContext(ctx)
		if info, ok := plugwire.InfoFromContext(ctx); !ok || info.Method != "func" {
			t.Error("no Info")
		}
		return []byte(baggage.FromContext(ctx).Member("user").Value()), nil
	})
	mux.Use(Middleware(server.opts...))
	caller := Caller(connect(t, mux), client.opts...)
	user, _ := baggage.NewMember("user", "gopher")
	bag, _ := baggage.New(user)
	for i, name := range mux.Methods() {
		reply, err := caller.Call(baggage.ContextWithBaggage(background, bag), name, nil)
		if err != nil || string(reply) != "gopher" {
			t.Errorf("%s: %q, %v", name, reply, err)
		}
		if s := server.ended(t, i+1)[i]; (<-seen).SpanID() != s.SpanContext().SpanID() {
			t.Errorf("%s: the handler saw another span", name)
		}
	}
}

// What is the caller's stays as it is; what it sends arrives beside the span.
func TestMetadataOfTheCaller(t *testing.T) {
	client, server := newTelemetry(), newTelemetry()
	mux := plugwire.NewMux()
	got := make(chan plugwire.Metadata, 1)
	mux.Handle("m", plugwire.HandlerFunc(func(r *plugwire.Request, reply []byte) ([]byte, error) {
		got <- r.Metadata()
		r.SetReplyMetadata(plugwire.Metadata{"back": "yes"})
		return append(reply, "world"...), nil
	}))
	mux.Use(Middleware(server.opts...))
	caller := Caller(connect(t, mux), client.opts...)
	for _, value := range []string{"short", strings.Repeat("v", maxMetadata-10)} { // beside which there is no room
		md := plugwire.Metadata{"key": value}
		call := &plugwire.Call{Method: "m", Metadata: md, Reply: []byte("hello, ")}
		if err := caller.Do(background, call); err != nil {
			t.Fatal(err)
		}
		if string(call.Reply) != "hello, world" || call.ReplyMetadata["back"] != "yes" {
			t.Errorf("reply %q with %v", call.Reply, call.ReplyMetadata)
		}
		if len(md) != 1 || len(call.Metadata) != 1 {
			t.Errorf("the caller's metadata has become %v", md)
		}
		arrived := <-got
		if _, traced := arrived["traceparent"]; arrived["key"] != value || traced != (value == "short") {
			t.Errorf("%d bytes: traceparent %v", len(value), traced)
		}
	}
}

func TestDoAll(t *testing.T) {
	client, server := newTelemetry(), newTelemetry()
	caller := Caller(connect(t, testMux(server)), client.opts...)
	ctx, parent := client.tracer.Start(background, "parent")
	calls := []*plugwire.Call{{Method: "ok", Request: []byte("1")}, {Method: "missing"}, {Method: "nothing"}, {Method: "ok", Request: []byte("2")}}
	if err := caller.DoAll(ctx, calls); plugwire.CodeOf(err) != plugwire.NotFound {
		t.Error(err)
	}
	want := []plugwire.Code{plugwire.OK, plugwire.NotFound, plugwire.Unimplemented, plugwire.OK}
	ended := client.ended(t, len(calls))
	ids := make(map[trace.SpanID]string)
	for i, call := range calls {
		if plugwire.CodeOf(call.Err) != want[i] || call.Metadata != nil || string(call.Reply) != string(call.Request) {
			t.Errorf("%d: %q, %v, %v", i, call.Reply, call.Metadata, call.Err)
		}
		status := codes.Unset
		if want[i] != plugwire.OK {
			status = codes.Error
		}
		wantSpan(t, ended[i], call.Method, trace.SpanKindClient, parent.SpanContext(), want[i], status)
		ids[ended[i].SpanContext().SpanID()] = call.Method
	}
	for _, s := range server.ended(t, 3) {
		if ids[s.Parent().SpanID()] != s.Name() {
			t.Errorf("%s has the wrong parent", s.Name())
		}
		delete(ids, s.Parent().SpanID())
	}
	client.wantPoints(t, "rpc.client.call.duration", map[string]uint64{"ok OK": 2, "missing NotFound": 1, "nothing Unimplemented": 1})
	server.wantPoints(t, "rpc.server.call.duration", map[string]uint64{"ok OK": 2, "missing NotFound": 1})
}

func TestOneWayMessages(t *testing.T) {
	client, server := newTelemetry(), newTelemetry()
	conn := connect(t, testMux(server))
	caller := Caller(conn, client.opts...)
	ctx, parent := client.tracer.Start(background, "parent")
	for _, method := range []string{"ok", "broken"} {
		if err := caller.Notify(ctx, method, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.Flush(background); err != nil {
		t.Fatal(err)
	}
	c, s := client.ended(t, 2), server.ended(t, 2)
	wantSpan(t, c[1], "broken", trace.SpanKindClient, parent.SpanContext(), plugwire.OK, codes.Unset)
	wantSpan(t, s[0], "ok", trace.SpanKindServer, trace.SpanContext{}, plugwire.OK, codes.Unset)
	wantSpan(t, s[1], "broken", trace.SpanKindServer, trace.SpanContext{}, plugwire.Unknown, codes.Error)
	for _, span := range append(c, s...) {
		if attr(span, "plugwire.one_way") != "true" {
			t.Errorf("%s: %v", span.Name(), span.Attributes())
		}
	}
	server.wantPoints(t, "rpc.server.call.duration", map[string]uint64{"ok OK": 1, "broken Unknown": 1})
}

func TestStreams(t *testing.T) {
	client, server := newTelemetry(), newTelemetry()
	mux := plugwire.NewMux()
	mux.HandleStream("s", Stream(func(s *plugwire.Stream) error {
		md, err := s.Header()
		if err != nil {
			return err
		}
		if err := s.Send([]byte(trace.SpanContextFromContext(s.Context()).SpanID().String() + md["user"])); err != nil {
			return err
		}
		what, err := s.Recv()
		switch {
		case err != nil:
			return err
		case string(what) == "panic":
			panic("on purpose")
		case string(what) == "wait":
			if err := s.Send(nil); err != nil {
				return err
			}
			<-s.Context().Done()
			return s.Context().Err()
		case string(what) == "fail":
			return &plugwire.Error{Code: plugwire.NotFound, Message: "no"}
		}
		return nil
	}, server.opts...))
	caller := Caller(connect(t, mux), client.opts...)
	ctx, parent := client.tracer.Start(background, "parent")
	for i, x := range []struct {
		what           string
		client, server plugwire.Code
		status         codes.Code // of the server
	}{
		{"well", plugwire.OK, plugwire.OK, codes.Unset},
		{"fail", plugwire.NotFound, plugwire.NotFound, codes.Unset},
		{"panic", plugwire.Internal, plugwire.Internal, codes.Error},
		{"wait", plugwire.Aborted, plugwire.Canceled, codes.Unset},
	} {
		s, err := caller.OpenStream(ctx, "s")
		if err != nil {
			t.Fatal(err)
		}
		user := ""
		if x.what == "fail" { // with a header of its own
			user = "gopher"
			if err := s.SetHeader(Inject(s.Context(), plugwire.Metadata{"user": user}, client.opts...)); err != nil {
				t.Fatal(err)
			}
		}
		first, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if len(client.spans.Ended()) != i {
			t.Errorf("%s: the span ended before the stream", x.what)
		}
		if err := s.Send([]byte(x.what)); err != nil {
			t.Fatal(err)
		}
		if x.what == "wait" {
			if _, err := s.Recv(); err != nil {
				t.Fatal(err)
			}
			s.Reset(plugwire.Aborted)
		}
		c, h := client.ended(t, i+1)[i], server.ended(t, i+1)[i]
		status := codes.Error
		if x.client == plugwire.OK {
			status = codes.Unset
		}
		wantSpan(t, c, "s", trace.SpanKindClient, parent.SpanContext(), x.client, status)
		wantSpan(t, h, "s", trace.SpanKindServer, c.SpanContext(), x.server, x.status)
		if string(first) != h.SpanContext().SpanID().String()+user {
			t.Errorf("%s: the handler saw %q", x.what, first)
		}
		if trace.SpanContextFromContext(s.Context()).SpanID() != c.SpanContext().SpanID() {
			t.Errorf("%s: the opener's context has another span", x.what)
		}
		s.Close()
	}
	server.wantPoints(t, "rpc.server.call.duration", map[string]uint64{"s OK": 1, "s NotFound": 1, "s Internal": 1, "s Canceled": 1})
}

// A stream that cannot be opened has a span too.
func TestStreamThatIsNotOpened(t *testing.T) {
	client := newTelemetry()
	conn := connect(t, plugwire.NewMux())
	conn.Close()
	_, err := Caller(conn, client.opts...).OpenStream(background, "s")
	if err == nil {
		t.Fatal("opened")
	}
	wantSpan(t, client.ended(t, 1)[0], "s", trace.SpanKindClient, trace.SpanContext{}, plugwire.CodeOf(err), codes.Error)
}

// noMetadata is a Caller whose other side takes no metadata.
type noMetadata struct {
	plugwire.Caller
	done int
}

func (c *noMetadata) Do(ctx context.Context, call *plugwire.Call) error {
	c.done++
	if len(call.Metadata) > 0 {
		call.Err = plugwire.Refused(plugwire.Unimplemented, "no metadata")
		return call.Err
	}
	call.Reply, call.Err = append(call.Reply, "fine"...), nil
	return nil
}

func (c *noMetadata) DoAll(ctx context.Context, calls []*plugwire.Call) (err error) {
	for _, call := range calls {
		if e := c.Do(ctx, call); err == nil {
			err = e
		}
	}
	return err
}

func TestOtherSidesWithoutMetadata(t *testing.T) {
	client, next := newTelemetry(), new(noMetadata)
	caller := Caller(next, client.opts...)
	if reply, err := caller.Call(background, "m", nil); err != nil || string(reply) != "fine" {
		t.Errorf("%q, %v", reply, err)
	}
	calls := []*plugwire.Call{{Method: "m"}, {Method: "n"}}
	if err := caller.DoAll(background, calls); err != nil || string(calls[1].Reply) != "fine" {
		t.Errorf("%q, %v", calls[1].Reply, err)
	}
	calls[1].Metadata = plugwire.Metadata{"own": "x"} // which is not left out
	if err := caller.DoAll(background, calls); plugwire.CodeOf(err) != plugwire.Unimplemented {
		t.Error(err)
	}
	for _, s := range client.ended(t, 5)[:4] {
		wantSpan(t, s, s.Name(), trace.SpanKindClient, trace.SpanContext{}, plugwire.OK, codes.Unset)
	}
}

func TestNamesOfMethods(t *testing.T) {
	server := newTelemetry(WithMethodName(func(string) string { return "_OTHER" }))
	mux := plugwire.NewMux()
	mux.Fallback(plugwire.HandlerFunc(func(_ *plugwire.Request, reply []byte) ([]byte, error) { return reply, nil }))
	mux.Use(Middleware(server.opts...))
	conn := connect(t, mux)
	for _, name := range []string{"a", "b"} {
		if _, err := conn.Call(background, name, nil); err != nil {
			t.Fatal(err)
		}
	}
	spans := server.ended(t, 2)
	wantSpan(t, spans[0], "_OTHER", trace.SpanKindServer, trace.SpanContext{}, plugwire.OK, codes.Unset)
	if attr(spans[1], "rpc.method_original") != "b" {
		t.Error(spans[1].Attributes())
	}
	server.wantPoints(t, "rpc.server.call.duration", map[string]uint64{"_OTHER OK": 2})
}

// capitals is a propagator that writes its key as HTTP has it.
type capitals struct{ propagation.TraceContext }

func (p capitals) Inject(ctx context.Context, c propagation.TextMapCarrier) {
	if s := trace.SpanContextFromContext(ctx); s.IsValid() {
		c.Set("X-Trace", s.TraceID().String())
	}
}

func TestKeysOfPropagatorsAreLowered(t *testing.T) {
	ctx, span := newTelemetry().tracer.Start(background, "x")
	md := Inject(ctx, nil, WithPropagator(capitals{}))
	if id := span.SpanContext().TraceID().String(); md["x-trace"] != id || carrier(md).Get("X-Trace") != id {
		t.Error(md)
	}
	if md := Inject(background, nil, WithPropagator(capitals{})); md != nil {
		t.Error(md)
	}
}

// Without options and without global providers, everything works as it does without
// this package.
func TestNothingSetUp(t *testing.T) {
	mux := plugwire.NewMux()
	mux.HandleFunc("ok", func(_ context.Context, req []byte) ([]byte, error) { return req, nil })
	mux.Use(Middleware())
	if reply, err := Caller(connect(t, mux)).Call(background, "ok", []byte("x")); err != nil || string(reply) != "x" {
		t.Errorf("%q, %v", reply, err)
	}
}
