package grpcstub

import (
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
)

// messageOf returns v as a message; nil for nil, which is sent as nothing.
func messageOf(v any) (proto.Message, error) {
	switch m := v.(type) {
	case nil:
		return nil, nil
	case proto.Message:
		return m, nil
	case protoadapt.MessageV1:
		return protoadapt.MessageV2Of(m), nil
	}
	return nil, status.Errorf(codes.Internal, "grpcstub: a %T is no protobuf message", v)
}

// appendMessage appends v's binary form to dst. The error is a status.
func appendMessage(dst []byte, v any) ([]byte, error) {
	m, err := messageOf(v)
	if m == nil || err != nil {
		return dst, err
	}
	out, err := proto.MarshalOptions{}.MarshalAppend(dst, m)
	if err != nil {
		return dst, status.Errorf(codes.Internal, "grpcstub: encoding a message: %v", err)
	}
	return out, nil
}

// readMessage decodes b into v. The error is a status.
func readMessage(b []byte, v any) error {
	m, err := messageOf(v)
	if err != nil {
		return err
	}
	if m == nil {
		return status.Error(codes.Internal, "grpcstub: no message to decode into")
	}
	if err := proto.Unmarshal(b, m); err != nil {
		return status.Errorf(codes.Internal, "grpcstub: decoding a message: %v", err)
	}
	return nil
}

// keepBuffer is the largest buffer that is kept for the next message.
const keepBuffer = 64 << 10

// A buffer's bytes are only used while its user is at work: whatever plugwire
// sends is copied, and so is what protobuf decodes.
type buffer struct{ b []byte }

var buffers = sync.Pool{New: func() any { return new(buffer) }}

func (b *buffer) free() {
	if cap(b.b) > keepBuffer {
		b.b = nil
	}
	buffers.Put(b)
}
