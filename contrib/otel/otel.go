package otel

import (
	"context"
	"net"
	"time"

	"github.com/plugwire/plugwire"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/rpcconv"
	"go.opentelemetry.io/otel/trace"
)

// scope is the name of the instrumentation: this module's path.
const scope = "github.com/plugwire/plugwire/contrib/otel"

// An Option changes what Middleware, Stream, Caller and Inject use.
type Option func(*config)

// WithTracerProvider has spans made by p instead of the global provider.
func WithTracerProvider(p trace.TracerProvider) Option {
	return func(c *config) { c.tracers = p }
}

// WithMeterProvider has durations recorded by p instead of the global provider.
func WithMeterProvider(p metric.MeterProvider) Option {
	return func(c *config) { c.meters = p }
}

// WithPropagator has p write and read the metadata instead of the global
// propagator, which does nothing unless the program has set one.
func WithPropagator(p propagation.TextMapPropagator) Option {
	return func(c *config) { c.propagator = p }
}

// WithMethodName has f say what spans and metrics call a method, which is otherwise
// its own name. Where f returns "_OTHER", the own name is in the span as
// rpc.method_original. f may be called by any number of goroutines at the same time.
func WithMethodName(f func(method string) string) Option {
	return func(c *config) { c.methodName = f }
}

// config is what the options make; it does not change afterwards.
type config struct {
	tracers    trace.TracerProvider
	meters     metric.MeterProvider
	propagator propagation.TextMapPropagator
	methodName func(string) string
}

func configOf(opts []Option) *config {
	c := new(config)
	for _, o := range opts {
		o(c)
	}
	if c.tracers == nil {
		c.tracers = otel.GetTracerProvider() // which passes on to one that is set later
	}
	if c.meters == nil {
		c.meters = otel.GetMeterProvider()
	}
	if c.propagator == nil {
		c.propagator = otel.GetTextMapPropagator()
	}
	if c.methodName == nil {
		c.methodName = func(method string) string { return method }
	}
	return c
}

// recorder makes the spans and durations of one side.
type recorder struct {
	*config
	tracer   trace.Tracer
	duration metric.Float64Histogram
	kind     trace.SpanKind
}

func newRecorder(opts []Option, kind trace.SpanKind) *recorder {
	r := &recorder{config: configOf(opts), kind: kind}
	r.tracer = r.tracers.Tracer(scope, trace.WithSchemaURL(semconv.SchemaURL))
	meter := r.meters.Meter(scope, metric.WithSchemaURL(semconv.SchemaURL))
	var err error
	if kind == trace.SpanKindServer {
		var d rpcconv.ServerCallDuration
		d, err = rpcconv.NewServerCallDuration(meter)
		r.duration = d.Inst()
	} else {
		var d rpcconv.ClientCallDuration
		d, err = rpcconv.NewClientCallDuration(meter)
		r.duration = d.Inst()
	}
	if err != nil {
		otel.Handle(err) // the instrument does nothing then
	}
	return r
}

// operation is a call, message or stream under way.
type operation struct {
	r     *recorder
	ctx   context.Context // with the span
	span  trace.Span
	start time.Time
	attrs []attribute.KeyValue // of the duration
}

var (
	systemName = semconv.RPCSystemNameKey.String("plugwire")
	oneWayKey  = attribute.Key("plugwire.one_way")
	uidKey     = attribute.Key("plugwire.peer.uid")
	pidKey     = attribute.Key("plugwire.peer.pid")
)

// start begins a span below the one in ctx. remote is the other side's address, or nil.
func (r *recorder) start(ctx context.Context, method string, oneWay bool, remote net.Addr, peer *plugwire.Peer) *operation {
	name := r.methodName(method)
	o := &operation{r: r, start: time.Now()}
	o.attrs = append(make([]attribute.KeyValue, 0, 8), systemName, semconv.RPCMethod(name))
	if remote != nil {
		switch n := remote.Network(); n {
		case "unix", "tcp", "pipe":
			o.attrs = append(o.attrs, semconv.NetworkTransportKey.String(n))
		}
	}
	if oneWay {
		o.attrs = append(o.attrs, oneWayKey.Bool(true))
	}
	attrs := o.attrs[:len(o.attrs):len(o.attrs)] // what follows is for the span alone
	if name == "_OTHER" {
		attrs = append(attrs, semconv.RPCMethodOriginal(method))
	}
	if a, ok := remote.(*net.TCPAddr); ok {
		attrs = append(attrs, semconv.NetworkPeerAddress(a.IP.String()), semconv.NetworkPeerPort(a.Port))
	}
	if peer != nil && peer.Verified {
		if peer.UID >= 0 {
			attrs = append(attrs, uidKey.Int(peer.UID))
		}
		if peer.PID >= 0 {
			attrs = append(attrs, pidKey.Int(peer.PID))
		}
	}
	o.ctx, o.span = r.tracer.Start(ctx, name, trace.WithSpanKind(r.kind), trace.WithTimestamp(o.start), trace.WithAttributes(attrs...))
	return o
}

// maxErrorText is how much of an error's text is recorded: it may be what some
// other peer wrote.
const maxErrorText = 2 << 10

// end ends the operation as err says.
func (o *operation) end(err error) {
	code := plugwire.CodeOf(err)
	if err != nil && code == plugwire.OK { // an error is never a success
		code = plugwire.Unknown
	}
	text := ""
	if err != nil {
		text = err.Error()
	}
	o.endWith(code, text)
}

func (o *operation) endWith(code plugwire.Code, text string) {
	now := time.Now()
	status := semconv.RPCResponseStatusCode(code.String())
	o.attrs = append(o.attrs, status)
	o.span.SetAttributes(status)
	if o.r.isError(code) {
		failed := semconv.ErrorTypeKey.String(code.String())
		o.attrs = append(o.attrs, failed)
		o.span.SetAttributes(failed)
		o.span.SetStatus(codes.Error, text[:min(len(text), maxErrorText)])
	}
	o.r.duration.Record(o.ctx, now.Sub(o.start).Seconds(), metric.WithAttributes(o.attrs...))
	o.span.End(trace.WithTimestamp(now))
}

// isError reports whether a code makes the span of this side an error.
func (r *recorder) isError(code plugwire.Code) bool {
	if r.kind != trace.SpanKindServer {
		return code != plugwire.OK
	}
	switch code {
	case plugwire.Unknown, plugwire.DeadlineExceeded, plugwire.Unimplemented,
		plugwire.Internal, plugwire.Unavailable, plugwire.DataLoss:
		return true
	}
	return false
}
