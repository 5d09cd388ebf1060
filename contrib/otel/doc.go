// Package otel traces and measures plugwire's calls with OpenTelemetry.
//
// Use Middleware and Stream on the side that serves, Caller on the side that calls:
//
//	mux.Use(otel.Middleware())
//	mux.HandleStream("numbers", otel.Stream(numbers))
//
//	caller := otel.Caller(conn) // a Conn, a Plugin or any other plugwire.Caller
//	reply, err := caller.Call(ctx, "greet", []byte("world"))
//
// The caller's span travels in the metadata of calls and streams, as the propagator
// writes it: with the W3C propagators under the keys traceparent, tracestate and
// baggage. A handler finds its own span in its context. One-way messages have no
// metadata, so their handlers' spans begin traces of their own.
//
// # Spans
//
// A span is named after the method. Its attributes follow the semantic conventions
// for RPC, version 1.43:
//
//	rpc.system.name           plugwire
//	rpc.method                the method
//	rpc.response.status_code  the name of the plugwire.Code: OK, NotFound, Code(300) ...
//	error.type                the same, where the span is an error
//	network.transport         unix, tcp or pipe, where it is known
//	network.peer.address      and network.peer.port: of TCP
//	plugwire.one_way          true, of one-way messages only
//	plugwire.peer.uid         and plugwire.peer.pid: on the side that serves, where
//	                          the kernel has told them
//
// On the calling side every code but OK makes the span an error. On the side that
// serves those do that stand for something broken there, as the conventions have it
// for gRPC: Unknown, DeadlineExceeded, Unimplemented, Internal, Unavailable and
// DataLoss. Texts of errors become the description of the span's status, cut at
// 2 KiB; payloads and the Detail of errors are never recorded.
//
// # Metrics
//
// The histograms rpc.client.call.duration and rpc.server.call.duration are in
// seconds and have the attributes rpc.system.name, rpc.method,
// rpc.response.status_code, error.type, network.transport and plugwire.one_way of the span.
//
// A Mux with a Fallback lets the other side choose names of methods, each of which
// would be another time series: use WithMethodName there.
//
// The package is a module of its own, so that plugwire needs no OpenTelemetry.
package otel
