package otel

import (
	"context"

	"github.com/plugwire/plugwire"
	"go.opentelemetry.io/otel/trace"
)

// Middleware returns middleware for plugwire's Mux.Use with a span and a duration for
// each call and one-way message, from when this middleware sees it until the next
// handler has returned. Put it first, so that what other middleware refuses is
// recorded too, and that middleware's own work in the context of the span.
//
// Handlers find the span in their context, by Request.Context too, and so does
// middleware further out once the handler has returned. One that panics or ends its goroutine is
// recorded with code Internal.
func Middleware(opts ...Option) func(plugwire.Handler) plugwire.Handler {
	r := newRecorder(opts, trace.SpanKindServer)
	return func(next plugwire.Handler) plugwire.Handler {
		return plugwire.HandlerFunc(func(req *plugwire.Request, reply []byte) (out []byte, err error) {
			ctx := r.extract(req.Context(), req.Metadata())
			o := r.start(ctx, req.Method(), req.OneWay(), req.Conn().RemoteAddr(), req.Peer())
			req.SetContext(o.ctx)
			returned := false
			// Deferred rather than recovered: plugwire logs the panic with its stack.
			defer func() { o.returned(returned, err) }()
			out, err = next.ServeCall(req, reply)
			returned = true
			return out, err
		})
	}
}

// Stream returns a function for plugwire's Mux.HandleStream that runs f with a span
// and a duration, from the stream's beginning until f has returned. f finds the span
// in the stream's Context. Mux.Use does not reach streams, so each handler is
// wrapped by itself.
func Stream(f func(*plugwire.Stream) error, opts ...Option) func(*plugwire.Stream) error {
	r := newRecorder(opts, trace.SpanKindServer)
	return func(s *plugwire.Stream) (err error) {
		info := s.Info()
		ctx := r.extract(s.Context(), info.Metadata)
		o := r.start(ctx, info.Method, false, info.Conn.RemoteAddr(), info.Peer)
		s.SetContext(o.ctx)
		returned := false
		defer func() { o.returned(returned, err) }()
		err = f(s)
		returned = true
		return err
	}
}

// extract returns ctx with what the other side has sent of its span.
func (r *recorder) extract(ctx context.Context, md plugwire.Metadata) context.Context {
	if len(md) == 0 {
		return ctx
	}
	return r.propagator.Extract(ctx, carrier(md))
}

// returned ends the operation of a handler, which has not returned when it has
// panicked or ended its goroutine.
func (o *operation) returned(returned bool, err error) {
	if !returned {
		o.endWith(plugwire.Internal, "the handler did not return")
		return
	}
	o.end(err)
}
