package grpcstub

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"sync"

	"github.com/plugwire/plugwire"
	"google.golang.org/grpc"
)

// ServerOptions holds a server's settings. The first interceptor of each list is
// the outermost. Middleware of the Mux runs outside of the unary ones, and not
// for streams.
type ServerOptions struct {
	UnaryInterceptors  []grpc.UnaryServerInterceptor
	StreamInterceptors []grpc.StreamServerInterceptor
}

// A Server registers gRPC services in a Mux: it is a grpc.ServiceRegistrar. It
// serves nothing itself; whatever serves the Mux does.
type Server struct {
	mux    *plugwire.Mux
	unary  grpc.UnaryServerInterceptor // of all, or nil
	stream grpc.StreamServerInterceptor

	mu       sync.Mutex
	services map[string]grpc.ServiceInfo // guarded by mu
}

var _ grpc.ServiceRegistrar = (*Server)(nil)

// NewServer returns a Server that registers services in mux. opts may be nil.
func NewServer(mux *plugwire.Mux, opts *ServerOptions) *Server {
	if mux == nil {
		panic("grpcstub: nil Mux")
	}
	s := &Server{mux: mux, services: make(map[string]grpc.ServiceInfo)}
	if opts != nil {
		s.unary = chainUnary(opts.UnaryInterceptors)
		s.stream = chainStream(opts.StreamInterceptors)
	}
	return s
}

// RegisterService registers the methods of a service: generated code calls it.
// It panics when impl is not of the service's type, and as Mux.Handle does when
// a method is registered already. Services may be added while the Mux is served.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, impl any) {
	if impl != nil && desc.HandlerType != nil {
		want := reflect.TypeOf(desc.HandlerType).Elem()
		if have := reflect.TypeOf(impl); !have.Implements(want) {
			panic(fmt.Sprintf("grpcstub: service %s: a %v is no %v", desc.ServiceName, have, want))
		}
	}
	info := grpc.ServiceInfo{Metadata: desc.Metadata}
	for i := range desc.Methods {
		m := &desc.Methods[i]
		name := "/" + desc.ServiceName + "/" + m.MethodName
		s.mux.Handle(name, &unaryHandler{name, m, impl, s.unary})
		info.Methods = append(info.Methods, grpc.MethodInfo{Name: m.MethodName})
	}
	for i := range desc.Streams {
		m := &desc.Streams[i]
		name := "/" + desc.ServiceName + "/" + m.StreamName
		s.mux.HandleStream(name, s.streamHandler(name, m, impl))
		info.Methods = append(info.Methods, grpc.MethodInfo{Name: m.StreamName, IsClientStream: m.ClientStreams, IsServerStream: m.ServerStreams})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.services[desc.ServiceName] = info
}

// GetServiceInfo describes the registered services, by name. With it,
// google.golang.org/grpc/reflection.Register takes the Server.
func (s *Server) GetServiceInfo() map[string]grpc.ServiceInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.services)
}

// unaryHandler answers the calls of one method.
type unaryHandler struct {
	name      string
	desc      *grpc.MethodDesc
	impl      any
	intercept grpc.UnaryServerInterceptor
}

// ServeCall implements plugwire.Handler.
func (h *unaryHandler) ServeCall(r *plugwire.Request, reply []byte) ([]byte, error) {
	x := &serverCall{Context: r.Context(), conn: r.Conn(), method: h.name, incoming: r.Metadata(), payload: r.Payload()}
	out, err := h.desc.Handler(h.impl, x, x.decode, h.intercept)
	if header, trailer := x.finish(); header != nil || trailer != nil {
		r.SetReplyMetadata(encodeMetadata(encodeMetadata(nil, "", header), trailerPrefix, trailer))
	}
	if err == nil {
		reply, err = appendMessage(reply, out)
	}
	if err != nil {
		return reply, toWire(err)
	}
	return reply, nil
}

// chainUnary makes one interceptor of many, or nil of none.
func chainUnary(all []grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
	if len(all) <= 1 {
		if len(all) == 0 {
			return nil
		}
		return all[0]
	}
	first, rest := all[0], chainUnary(all[1:])
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		return first(ctx, req, info, func(ctx context.Context, req any) (any, error) {
			return rest(ctx, req, info, handler)
		})
	}
}

// chainStream makes one interceptor of many, or nil of none.
func chainStream(all []grpc.StreamServerInterceptor) grpc.StreamServerInterceptor {
	if len(all) <= 1 {
		if len(all) == 0 {
			return nil
		}
		return all[0]
	}
	first, rest := all[0], chainStream(all[1:])
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		return first(srv, ss, info, func(srv any, ss grpc.ServerStream) error {
			return rest(srv, ss, info, handler)
		})
	}
}
