package otel

import (
	"context"
	"io"
	"net"

	"github.com/plugwire/plugwire"
	"go.opentelemetry.io/otel/trace"
)

// Caller returns a Caller that makes its calls through c, each with a span and a
// duration.
//
// Call and Do: the span is the call's. The span's context is added to a copy of
// Call.Metadata. Where the other side takes no metadata, or there is no room
// left for more, the call is made without.
//
// DoAll: one span for each call, so that each has its own status and handler's span
// below it. As plugwire wakes the caller only when all have ended, all of them last
// until then.
//
// Notify: the span lasts until the message was accepted, which is no sign of it having been
// handled. There is no metadata, so the handler's span is not below it.
//
// OpenStream: the span lasts until the stream is over (Stream.Done), for which a
// goroutine waits. It is in the stream's Context, and its context is in the stream's
// header; who uses SetHeader should use Inject. A stream that never ends, because
// it was neither read to its end nor closed, has a span that never ends.
func Caller(c plugwire.Caller, opts ...Option) plugwire.Caller {
	return &caller{next: c, r: newRecorder(opts, trace.SpanKindClient)}
}

type caller struct {
	next plugwire.Caller
	r    *recorder
}

func (c *caller) start(ctx context.Context, method string, oneWay bool) *operation {
	return c.r.start(ctx, method, oneWay, remoteAddr(c.next), nil)
}

// remoteAddr returns where c's calls go, or nil when that cannot be told.
func remoteAddr(c plugwire.Caller) net.Addr {
	if p, ok := c.(interface{ Conn() *plugwire.Conn }); ok { // a Plugin
		if conn := p.Conn(); conn != nil {
			return conn.RemoteAddr()
		}
		return nil
	}
	if a, ok := c.(interface{ RemoteAddr() net.Addr }); ok {
		return a.RemoteAddr()
	}
	return nil
}

// Call implements plugwire.Caller.
func (c *caller) Call(ctx context.Context, method string, req []byte) ([]byte, error) {
	call := plugwire.Call{Method: method, Request: req}
	if err := c.Do(ctx, &call); err != nil {
		return nil, err
	}
	return call.Reply, nil
}

// Do implements plugwire.Caller.
func (c *caller) Do(ctx context.Context, call *plugwire.Call) error {
	o := c.start(ctx, call.Method, false)
	inner := *call // whose metadata is ours
	md, injected := c.r.inject(o.ctx, call.Metadata)
	inner.Metadata = md
	err := c.next.Do(o.ctx, &inner)
	if injected && takesNone(err) {
		inner.Metadata = call.Metadata
		err = c.next.Do(o.ctx, &inner)
	}
	call.Reply, call.ReplyMetadata, call.Err = inner.Reply, inner.ReplyMetadata, inner.Err
	o.end(err)
	return err
}

// takesNone reports whether a call may have failed for its metadata alone, and can be
// made again without. There being no such method has the same code; to be told
// that a second time does no harm.
func takesNone(err error) bool {
	return err != nil && plugwire.CodeOf(err) == plugwire.Unimplemented && plugwire.NotRun(err)
}

// DoAll implements plugwire.Caller.
func (c *caller) DoAll(ctx context.Context, calls []*plugwire.Call) error {
	ops := make([]*operation, len(calls))
	inner := make([]plugwire.Call, len(calls))
	given := make([]*plugwire.Call, len(calls))
	injected := make([]bool, len(calls))
	for i, call := range calls {
		ops[i] = c.start(ctx, call.Method, false)
		inner[i] = *call
		inner[i].Metadata, injected[i] = c.r.inject(ops[i].ctx, call.Metadata)
		given[i] = &inner[i]
	}
	err := c.next.DoAll(ctx, given)
	var again []*plugwire.Call
	for i := range inner {
		if injected[i] && takesNone(inner[i].Err) {
			inner[i].Metadata = calls[i].Metadata
			again = append(again, &inner[i])
		}
	}
	if len(again) > 0 {
		c.next.DoAll(ctx, again) // each has its Err
		err = nil
		for i := range inner {
			if err = inner[i].Err; err != nil {
				break
			}
		}
	}
	for i, call := range calls {
		call.Reply, call.ReplyMetadata, call.Err = inner[i].Reply, inner[i].ReplyMetadata, inner[i].Err
		ops[i].end(call.Err)
	}
	return err
}

// Notify implements plugwire.Caller.
func (c *caller) Notify(ctx context.Context, method string, msg []byte) error {
	o := c.start(ctx, method, true)
	err := c.next.Notify(o.ctx, method, msg)
	o.end(err)
	return err
}

// OpenStream implements plugwire.Caller.
func (c *caller) OpenStream(ctx context.Context, method string) (*plugwire.Stream, error) {
	o := c.start(ctx, method, false)
	s, err := c.next.OpenStream(o.ctx, method)
	if err != nil {
		o.end(err)
		return nil, err
	}
	if md, injected := c.r.inject(o.ctx, nil); injected {
		s.SetHeader(md) // else the stream goes without
	}
	go func() {
		<-s.Done()
		if err := s.Err(); err != io.EOF {
			o.end(err)
		} else {
			o.end(nil)
		}
	}()
	return s, nil
}
