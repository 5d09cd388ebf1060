package grpcstub

import (
	"context"
	"io"
	"sync"

	"github.com/plugwire/plugwire"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// clientStream is a grpc.ClientStream. As gRPC has it, one goroutine may send
// while another receives, but no two may do the same.
type clientStream struct {
	stream  *plugwire.Stream
	desc    *grpc.StreamDesc
	options callOptions
	opts    []grpc.CallOption
	buf     []byte // of the receiver

	closedSend bool // of the sender

	end       sync.Once
	stopWatch func() bool // ends the watch over the context, or nil
}

// openStream is the innermost streamer.
func (c *Client) openStream(ctx context.Context, desc *grpc.StreamDesc, _ *grpc.ClientConn, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	o, err := readOptions(opts)
	if err != nil {
		return nil, err
	}
	md, err := outgoing(ctx)
	if err != nil {
		return nil, err
	}
	s, err := c.caller.OpenStream(ctx, method)
	if err != nil {
		return nil, c.notOpened(opts, err)
	}
	if len(md) > 0 {
		err = s.SetHeader(md)
	}
	if err == nil && desc.ClientStreams { // the handler may be expected to run before the first message
		err = s.SendHeader()
	}
	if err != nil {
		s.Close()
		return nil, c.notOpened(opts, err)
	}
	cs := &clientStream{stream: s, desc: desc, options: o, opts: opts}
	if o.onFinish {
		// The stream ends by itself with its context; who waits for it may never ask.
		cs.stopWatch = context.AfterFunc(ctx, func() { cs.settle(status.FromContextError(ctx.Err()).Err()) })
	}
	return cs, nil
}

func (c *Client) notOpened(opts []grpc.CallOption, err error) error {
	err = fromWire(err)
	settle(opts, connOf(c.caller), nil, nil, err)
	return err
}

// Context returns the stream's context.
func (cs *clientStream) Context() context.Context { return cs.stream.Context() }

// Header waits for the header. It returns nil when the stream ended without one;
// RecvMsg tells why.
func (cs *clientStream) Header() (metadata.MD, error) {
	md, err := cs.stream.Header()
	if err != nil {
		return nil, nil
	}
	return headerOf(md), nil
}

// Trailer returns the trailer, once RecvMsg has returned an error.
func (cs *clientStream) Trailer() metadata.MD { return headerOf(cs.stream.Trailer()) }

// CloseSend says that nothing more will be sent. What went wrong is for RecvMsg to tell.
func (cs *clientStream) CloseSend() error {
	cs.closedSend = true
	if cs.Context().Err() == nil { // else the stream is about to be reset
		cs.stream.CloseSend()
	}
	return nil
}

// SendMsg sends a message. An error of this side's making ends the stream and is
// returned; otherwise the error is io.EOF when the stream has ended, and RecvMsg
// tells why. The generated code of methods with a single request wants to learn
// even that from RecvMsg alone.
func (cs *clientStream) SendMsg(m any) error {
	if cs.closedSend {
		return status.Error(codes.Internal, "grpcstub: SendMsg after CloseSend")
	}
	b := buffers.Get().(*buffer)
	defer b.free()
	var err error
	if b.b, err = appendMessage(b.b[:0], m); err == nil {
		err = cs.options.checkSend(len(b.b))
	}
	if err != nil {
		cs.giveUp(err)
		return err
	}
	if err = cs.Context().Err(); err == nil { // else the stream is about to be reset
		err = cs.stream.Send(b.b)
	}
	switch {
	case err == nil:
		return nil
	case plugwire.CodeOf(err) == plugwire.ResourceExhausted:
		// The message is longer than the other side takes: the stream stands, but
		// for gRPC it has ended. When it is the other side's status, it stays that.
		err = fromWire(err)
		cs.giveUp(err)
		return err
	case !cs.desc.ClientStreams:
		return nil
	}
	return io.EOF
}

// RecvMsg receives a message. The error is io.EOF at a good end, else a status.
func (cs *clientStream) RecvMsg(m any) error {
	err := cs.receive(m)
	if err != nil {
		if err == io.EOF && !cs.desc.ServerStreams {
			err = status.Error(codes.Internal, "grpcstub: the stream ended well without the one reply that it must have")
		}
		cs.finish(err)
		return err
	}
	if cs.desc.ServerStreams {
		return nil
	}
	// The only reply is good when the status behind it is.
	_, err = cs.stream.Recv()
	switch {
	case err == io.EOF:
		cs.finish(nil)
		return nil
	case err == nil:
		err = status.Error(codes.Internal, "grpcstub: more than the one reply that the stream must have")
		cs.giveUp(err)
	default:
		err = fromWire(err)
		cs.finish(err)
	}
	return err
}

func (cs *clientStream) receive(m any) error {
	if err := cs.Context().Err(); err != nil { // which resets the stream on a goroutine of its own
		return status.FromContextError(err).Err()
	}
	b, err := cs.stream.AppendRecv(cs.buf[:0])
	if err != nil {
		if err == io.EOF {
			return err
		}
		return fromWire(err)
	}
	if cs.buf = b; cap(b) > keepStreamBuffer {
		cs.buf = nil
	}
	if err = cs.options.checkRecv(len(b)); err == nil {
		err = readMessage(b, m)
	}
	if err != nil {
		cs.giveUp(err)
	}
	return err
}

// keepStreamBuffer is the largest buffer that a stream keeps between messages,
// for it may be idle for long.
const keepStreamBuffer = 4 << 10

// giveUp ends a stream for a reason of this side's.
func (cs *clientStream) giveUp(err error) {
	cs.stream.Reset(plugwire.Code(status.Code(err)))
	cs.finish(err)
}

// finish settles the call's options.
func (cs *clientStream) finish(err error) {
	if cs.stopWatch != nil {
		cs.stopWatch()
	}
	if err == io.EOF {
		err = nil
	}
	cs.settle(err)
}

func (cs *clientStream) settle(err error) {
	if len(cs.opts) == 0 {
		return
	}
	cs.end.Do(func() {
		var header, trailer metadata.MD
		if cs.options.wantsMetadata {
			header, _ = cs.Header() // at hand, for the stream has ended
			trailer = cs.Trailer()
		}
		settle(cs.opts, cs.stream.Info().Conn, header, trailer, err)
	})
}
