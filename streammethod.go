package plugwire

import (
	"context"
	"fmt"
	"sync"
)

// A StreamMethod is a stream by name with types: the opener sends In and
// receives Out. It is the Method of streams. Use NewStreamMethod; like a Method
// it is usually a package variable, which both programs share.
type StreamMethod[In, Out any] struct {
	name  string
	codec Codec
}

// NewStreamMethod returns the method of the given name, whose messages c
// encodes. It panics as NewMethod does.
func NewStreamMethod[In, Out any](name string, c Codec) StreamMethod[In, Out] {
	m := NewMethod[In, Out](name, c)
	return StreamMethod[In, Out]{m.name, m.codec}
}

// Handle makes f answer the stream on mux, as Mux.HandleStream does. f sends Out
// and receives In.
func (m StreamMethod[In, Out]) Handle(mux *Mux, f func(*TypedStream[Out, In]) error) {
	if f == nil {
		panic(fmt.Sprintf("plugwire: method %q: nil handler", m.name))
	}
	mux.HandleStream(m.name, func(s *Stream) error { return f(&TypedStream[Out, In]{Stream: s, codec: m.codec}) })
}

// Open opens the stream on c, as Conn.OpenStream does.
func (m StreamMethod[In, Out]) Open(ctx context.Context, c Caller) (*TypedStream[In, Out], error) {
	s, err := c.OpenStream(ctx, m.name)
	if err != nil {
		return nil, err
	}
	return &TypedStream[In, Out]{Stream: s, codec: m.codec}, nil
}

// A TypedStream is a Stream whose messages have types. What it does not do
// itself is the Stream's: CloseSend, Reset, Close, Header and so on.
type TypedStream[Send, Recv any] struct {
	*Stream
	codec Codec
}

// streamBuffers are for encoded messages.
var streamBuffers = sync.Pool{New: func() any { return new([]byte) }}

func putStreamBuffer(b *[]byte) {
	if cap(*b) <= maxFrame {
		streamBuffers.Put(b)
	}
}

// Send encodes msg and sends it, see Stream.Send. One that is nil or does not
// encode is an error with code InvalidArgument (or that of the codec's *Error),
// and the stream goes on.
func (s *TypedStream[Send, Recv]) Send(msg *Send) error {
	if msg == nil {
		return s.failed(InvalidArgument, "nil message", nil)
	}
	buf := streamBuffers.Get().(*[]byte)
	defer putStreamBuffer(buf)
	b, err := s.codec.Append((*buf)[:0], msg)
	if err != nil {
		return s.failed(requestCode(err), "the message does not encode", err)
	}
	*buf = b
	return s.Stream.Send(b)
}

// Recv receives and decodes the next message, which is the caller's; see
// Stream.Recv. One that does not decode is an error with code Internal on the
// opener's side and InvalidArgument on the handler's; the stream goes on.
func (s *TypedStream[Send, Recv]) Recv() (*Recv, error) {
	buf := streamBuffers.Get().(*[]byte)
	defer putStreamBuffer(buf)
	b, err := s.Stream.AppendRecv((*buf)[:0])
	if err != nil {
		return nil, err
	}
	*buf = b
	msg := new(Recv)
	if err := s.codec.Unmarshal(b, msg); err != nil {
		code := Internal
		if s.back != 0 {
			code = requestCode(err)
		}
		return nil, s.failed(code, "the message does not decode", err)
	}
	return msg, nil
}

func (s *TypedStream[Send, Recv]) failed(code Code, what string, err error) error {
	return &Error{Code: code, Op: "stream", Addr: s.info.Method, Message: what, Err: err}
}
