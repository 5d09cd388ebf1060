package grpcstub

import (
	"context"
	"sync"

	"github.com/plugwire/plugwire"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// ClientOptions holds a client's settings. The first interceptor of each list is
// the outermost. They are given a nil *grpc.ClientConn, for there is none.
type ClientOptions struct {
	UnaryInterceptors  []grpc.UnaryClientInterceptor
	StreamInterceptors []grpc.StreamClientInterceptor
}

// A Client is what generated clients call: a grpc.ClientConnInterface. It may be
// used by any number of goroutines, and needs no closing.
type Client struct {
	caller plugwire.Caller
	invoke grpc.UnaryInvoker
	open   grpc.Streamer
}

var _ grpc.ClientConnInterface = (*Client)(nil)

// NewClient returns a Client whose calls c makes. opts may be nil.
func NewClient(c plugwire.Caller, opts *ClientOptions) *Client {
	if c == nil {
		panic("grpcstub: nil Caller")
	}
	if opts == nil {
		opts = new(ClientOptions)
	}
	client := &Client{caller: c}
	client.invoke = client.call
	for i := len(opts.UnaryInterceptors) - 1; i >= 0; i-- {
		intercept, next := opts.UnaryInterceptors[i], client.invoke
		client.invoke = func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, o ...grpc.CallOption) error {
			return intercept(ctx, method, req, reply, cc, next, o...)
		}
	}
	client.open = client.openStream
	for i := len(opts.StreamInterceptors) - 1; i >= 0; i-- {
		intercept, next := opts.StreamInterceptors[i], client.open
		client.open = func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, o ...grpc.CallOption) (grpc.ClientStream, error) {
			return intercept(ctx, desc, cc, method, next, o...)
		}
	}
	return client
}

// Invoke makes a unary call: generated code calls it. Every error is a status;
// where plugwire had the error, errors.As finds the *plugwire.Error, so that
// plugwire.NotRun says whether the request can have run.
func (c *Client) Invoke(ctx context.Context, method string, req, reply any, opts ...grpc.CallOption) error {
	return c.invoke(ctx, method, req, reply, nil, opts...)
}

// NewStream opens a stream: generated code calls it. As with gRPC, the caller
// must receive until an error, or have ctx end.
func (c *Client) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return c.open(ctx, desc, nil, method, opts...)
}

// unaryCall is what a call needs that the next one can use again.
type unaryCall struct {
	call       plugwire.Call
	req, reply []byte
}

var unaryCalls = sync.Pool{New: func() any { return new(unaryCall) }}

func (u *unaryCall) free() {
	u.call = plugwire.Call{}
	if cap(u.req) > keepBuffer {
		u.req = nil
	}
	if cap(u.reply) > keepBuffer {
		u.reply = nil
	}
	unaryCalls.Put(u)
}

// call is the innermost invoker.
func (c *Client) call(ctx context.Context, method string, req, reply any, _ *grpc.ClientConn, opts ...grpc.CallOption) error {
	o, err := readOptions(opts)
	if err != nil {
		return err
	}
	md, err := outgoing(ctx)
	if err != nil {
		return err
	}
	u := unaryCalls.Get().(*unaryCall)
	defer u.free()
	if u.req, err = appendMessage(u.req[:0], req); err == nil {
		err = o.checkSend(len(u.req))
	}
	if err == nil {
		u.call = plugwire.Call{Method: method, Request: u.req, Reply: u.reply[:0], Metadata: md}
		err = c.caller.Do(ctx, &u.call)
		u.reply = u.call.Reply
		switch {
		case err != nil:
			err = fromWire(err)
		default:
			if err = o.checkRecv(len(u.reply)); err == nil {
				err = readMessage(u.reply, reply)
			}
		}
	}
	var header, trailer metadata.MD
	if o.wantsMetadata {
		header, trailer = decodeMetadata(u.call.ReplyMetadata)
	}
	if len(opts) > 0 {
		settle(opts, connOf(c.caller), header, trailer, err)
	}
	return err
}
