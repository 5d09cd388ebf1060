package grpcstub

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/plugwire/plugwire"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// A serverCall is the context that a gRPC handler is given, and the
// grpc.ServerTransportStream in it. Handlers may keep it, so it is never used
// again. What gRPC keeps in a context (the peer, the metadata, the transport
// stream) is made when somebody asks the context for a value.
type serverCall struct {
	context.Context // plugwire's
	conn            *plugwire.Conn
	method          string
	incoming        plugwire.Metadata
	payload         []byte           // of a unary request, valid until the handler returns
	stream          *plugwire.Stream // nil for a unary method

	spoke atomic.Bool // a message has taken the header along

	once   sync.Once
	values context.Context // what gRPC keeps in a context, made once

	mu      sync.Mutex // held while a stream's header is sent; guards what follows
	header  metadata.MD
	trailer metadata.MD
	sent    bool // the header counts as sent: by SendHeader
	over    bool // the handler has returned
}

var _ grpc.ServerTransportStream = (*serverCall)(nil)

// Value implements context.Context.
func (x *serverCall) Value(key any) any {
	if v := x.Context.Value(key); v != nil {
		return v
	}
	return x.grpcValues().Value(key)
}

func (x *serverCall) grpcValues() context.Context {
	x.once.Do(func() {
		ctx := peer.NewContext(context.Background(), peerOf(x.conn))
		ctx = metadata.NewIncomingContext(ctx, headerOf(x.incoming))
		x.values = grpc.NewContextWithServerTransportStream(ctx, x)
	})
	return x.values
}

// AfterFunc is for the context package, which derives contexts from one that has
// it without a goroutine.
func (x *serverCall) AfterFunc(f func()) (stop func() bool) {
	if a, ok := x.Context.(interface{ AfterFunc(func()) func() bool }); ok {
		return a.AfterFunc(f)
	}
	return context.AfterFunc(x.Context, f)
}

// decode decodes a unary method's request: generated code calls it.
func (x *serverCall) decode(v any) error { return readMessage(x.payload, v) }

// finish marks that the handler has returned, and gives what it has set.
func (x *serverCall) finish() (header, trailer metadata.MD) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.over, x.payload = true, nil
	return x.header, x.trailer
}

var (
	errLateHeader  = status.Error(codes.Internal, "grpcstub: the header was sent already")
	errLateTrailer = status.Error(codes.Internal, "grpcstub: the handler has returned")
)

// Method returns the full name of the method.
func (x *serverCall) Method() string { return x.method }

// SetHeader adds to the header.
func (x *serverCall) SetHeader(md metadata.MD) error {
	if md.Len() == 0 {
		return nil
	}
	return x.addHeader(md, false)
}

// SendHeader adds to the header and sends it. That of a unary method is sent
// with the reply; it only takes no more from then on.
func (x *serverCall) SendHeader(md metadata.MD) error { return x.addHeader(md, true) }

func (x *serverCall) addHeader(md metadata.MD, send bool) error {
	if err := checkMetadata(md); err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.sent || x.over || x.spoke.Load() {
		return errLateHeader
	}
	header := metadata.Join(x.header, md)
	if x.stream != nil && md.Len() > 0 {
		if err := x.stream.SetHeader(encodeMetadata(nil, "", header)); err != nil {
			if plugwire.CodeOf(err) == plugwire.FailedPrecondition {
				return errLateHeader // a message has taken it along
			}
			return fromWire(err)
		}
	}
	x.header, x.sent = header, send
	if send && x.stream != nil {
		if err := x.stream.SendHeader(); err != nil {
			return fromWire(err)
		}
	}
	return nil
}

// SetTrailer adds to the trailer.
func (x *serverCall) SetTrailer(md metadata.MD) error {
	if md.Len() == 0 {
		return nil
	}
	if err := checkMetadata(md); err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.over {
		return errLateTrailer
	}
	x.trailer = metadata.Join(x.trailer, md)
	return nil
}
