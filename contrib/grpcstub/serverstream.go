package grpcstub

import (
	"context"
	"io"

	"github.com/plugwire/plugwire"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// streamHandler returns what answers the streams of one method.
func (s *Server) streamHandler(name string, desc *grpc.StreamDesc, impl any) func(*plugwire.Stream) error {
	info := &grpc.StreamServerInfo{FullMethod: name, IsClientStream: desc.ClientStreams, IsServerStream: desc.ServerStreams}
	return func(stream *plugwire.Stream) error {
		x := &serverCall{Context: stream.Context(), conn: stream.Info().Conn, method: name, incoming: stream.Info().Metadata, stream: stream}
		ss := &serverStream{call: x, desc: desc}
		var err error
		if s.stream == nil {
			err = desc.Handler(impl, ss)
		} else {
			err = s.stream(impl, ss, info, desc.Handler)
		}
		if _, trailer := x.finish(); trailer != nil {
			if bad := stream.SetTrailer(encodeMetadata(nil, "", trailer)); bad != nil && err == nil {
				err = status.Errorf(codes.Internal, "grpcstub: the trailer cannot be sent: %v", bad)
			}
		}
		return toWire(err)
	}
}

// serverStream is a grpc.ServerStream. As gRPC has it, one goroutine may send
// while another receives, but no two may do the same.
type serverStream struct {
	call     *serverCall
	desc     *grpc.StreamDesc
	buf      []byte // of the receiver
	received bool   // a message
}

// Context returns the handler's context.
func (ss *serverStream) Context() context.Context { return ss.call }

// SetHeader adds to the header, which goes with the first message.
func (ss *serverStream) SetHeader(md metadata.MD) error { return ss.call.SetHeader(md) }

// SendHeader adds to the header and sends it.
func (ss *serverStream) SendHeader(md metadata.MD) error { return ss.call.SendHeader(md) }

// SetTrailer adds to the trailer, which goes with the end. What cannot be sent
// is dropped, for there is nowhere to say so.
func (ss *serverStream) SetTrailer(md metadata.MD) { ss.call.SetTrailer(md) }

// SendMsg sends a message.
func (ss *serverStream) SendMsg(m any) error {
	b := buffers.Get().(*buffer)
	defer b.free()
	var err error
	if b.b, err = appendMessage(b.b[:0], m); err != nil {
		return err
	}
	if !ss.call.spoke.Load() {
		ss.call.spoke.Store(true)
	}
	if err = ss.call.stream.Send(b.b); err != nil && err != io.EOF {
		return fromWire(err)
	}
	return err
}

// RecvMsg receives a message. The error is io.EOF when the client has closed its
// direction, else a status.
func (ss *serverStream) RecvMsg(m any) error {
	b, err := ss.call.stream.AppendRecv(ss.buf[:0])
	switch {
	case err == io.EOF && !ss.desc.ClientStreams && !ss.received:
		return status.Error(codes.Internal, "grpcstub: the stream ended without the one request that it must have")
	case err == io.EOF:
		return err
	case err != nil:
		return fromWire(err)
	}
	ss.received = true
	if ss.buf = b; cap(b) > keepStreamBuffer {
		ss.buf = nil
	}
	return readMessage(b, m)
}
