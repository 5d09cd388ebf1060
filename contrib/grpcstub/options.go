package grpcstub

import (
	"math"

	"github.com/plugwire/plugwire"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// callOptions is what a call's options say that has an effect before its end.
type callOptions struct {
	maxSend, maxRecv int
	onFinish         bool // there is a function to call in the end
	wantsMetadata    bool // or a place for the header or trailer
}

// readOptions refuses options that change what the other side is to understand,
// which it would not. Those that are advice are ignored.
func readOptions(opts []grpc.CallOption) (o callOptions, err error) {
	o.maxSend, o.maxRecv = math.MaxInt, math.MaxInt
	for _, opt := range opts {
		switch opt := opt.(type) {
		case grpc.StaticMethodCallOption: // the usual one
		case grpc.HeaderCallOption, grpc.TrailerCallOption:
			o.wantsMetadata = true
		case grpc.OnFinishCallOption:
			o.onFinish = true
		case grpc.MaxSendMsgSizeCallOption:
			o.maxSend = opt.MaxSendMsgSize
		case grpc.MaxRecvMsgSizeCallOption:
			o.maxRecv = opt.MaxRecvMsgSize
		case grpc.PerRPCCredsCallOption:
			err = unsupported("per-RPC credentials")
		case grpc.ForceCodecCallOption, grpc.ForceCodecV2CallOption, grpc.CustomCodecCallOption:
			err = unsupported("a codec of the call's own")
		case grpc.ContentSubtypeCallOption:
			if opt.ContentSubtype != "proto" {
				err = unsupported("content subtype " + opt.ContentSubtype)
			}
		}
	}
	return o, err
}

func unsupported(what string) error {
	return status.Errorf(codes.Unimplemented, "grpcstub: %s: not supported", what)
}

// settle gives the options of a call that has ended what they ask for.
func settle(opts []grpc.CallOption, conn *plugwire.Conn, header, trailer metadata.MD, err error) {
	for _, opt := range opts {
		switch opt := opt.(type) {
		case grpc.HeaderCallOption:
			*opt.HeaderAddr = header
		case grpc.TrailerCallOption:
			*opt.TrailerAddr = trailer
		case grpc.PeerCallOption:
			if conn != nil {
				*opt.PeerAddr = *peerOf(conn)
			}
		case grpc.OnFinishCallOption:
			opt.OnFinish(err)
		}
	}
}

func (o *callOptions) checkSend(n int) error {
	if n > o.maxSend {
		return status.Errorf(codes.ResourceExhausted, "grpcstub: message to send of %d bytes, the limit is %d", n, o.maxSend)
	}
	return nil
}

func (o *callOptions) checkRecv(n int) error {
	if n > o.maxRecv {
		return status.Errorf(codes.ResourceExhausted, "grpcstub: received message of %d bytes, the limit is %d", n, o.maxRecv)
	}
	return nil
}
