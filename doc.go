// Package plugwire talks to a plugin, sidecar or worker process over one
// connection: calls and one-way messages, in both directions, at the same time.
//
// Use Launch to start a plugin process and ServePlugin to be one; use Server and
// Dial where no processes are launched. What a side serves is a Mux of Handlers;
// what makes calls is a Conn or a Plugin, or a Pool, which connects by itself and
// again when a server has ended. A Method gives a method's request and reply
// types, for both sides. The FrameReader and FrameWriter are the framing alone.
//
// The protocol is in docs/PROTOCOL.md. Library code never logs by itself: set
// Config.Logger to see what happens.
package plugwire
