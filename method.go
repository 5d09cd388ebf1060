package plugwire

import (
	"context"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
)

// A Codec turns values into bytes and back. Its methods may be called by any
// number of goroutines at the same time.
//
// Append appends the encoded v to dst and returns the extended slice, which like
// dst is the caller's: it must not lie in memory of v, and is not kept. Unmarshal
// decodes b into v, a pointer to a zero value; b is the caller's again when it
// returns, so whatever v is to hold must be copied out of it. A Method hands both
// a pointer to its type.
type Codec interface {
	Append(dst []byte, v any) ([]byte, error)
	Unmarshal(b []byte, v any) error
}

var (
	// JSON encodes by encoding/json, without the escapes that make JSON safe
	// inside HTML.
	JSON Codec = jsonCodec{}

	// Binary encodes by the value's own methods: encoding.BinaryAppender, else
	// encoding.BinaryMarshaler, and encoding.BinaryUnmarshaler.
	Binary Codec = binaryCodec{}

	// Raw takes bytes as they are: it appends a []byte, *[]byte, string or
	// *string, and stores a copy in a *[]byte, whose capacity it uses, or a *string.
	Raw Codec = rawCodec{}
)

// A Method is a method whose request is a Req and whose reply is a Resp, for
// both sides: the one that serves it and those that call it. It may be copied
// and used by any number of goroutines. Its zero value is not usable: call
// NewMethod.
type Method[Req, Resp any] struct {
	_     [0]func(*Req) *Resp // no conversion to a Method of other types
	name  string
	codec Codec
}

// NewMethod returns the method of the given name, 1 to 255 bytes, whose requests
// and replies c encodes. It registers nothing. It panics when the name is empty
// or too long, and when c is nil.
func NewMethod[Req, Resp any](name string, c Codec) Method[Req, Resp] {
	switch {
	case name == "" || len(name) > maxMethodName:
		panic(fmt.Sprintf("plugwire: method name %q: must have 1 to %d bytes", name, maxMethodName))
	case c == nil:
		panic(fmt.Sprintf("plugwire: method %q: nil codec", name))
	}
	return Method[Req, Resp]{name: name, codec: c}
}

// Handle makes f answer the method in mux. It panics when f is nil, and as
// Mux.Handle does.
//
// The request is f's own and may be kept. The reply is encoded as soon as f has
// returned, and not kept. f's context and errors are those of a Handler; a reply
// that comes with an error is dropped. A nil reply without an error is an error
// with code Internal, as with gRPC: a method that has nothing to say returns an
// empty Resp.
//
// A request that does not decode does not reach f. Its caller gets code
// InvalidArgument, or, where the codec's error is an *Error, that one's code.
// NotRun does not hold of it, because decoding is this side's code and may have
// had effects, and because it would fail again. A reply that does not encode is
// an error with code Internal.
func (m Method[Req, Resp]) Handle(mux *Mux, f func(context.Context, *Req) (*Resp, error)) {
	if f == nil {
		panic(fmt.Sprintf("plugwire: method %q: nil handler", m.name))
	}
	mux.Handle(m.name, HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		req := new(Req)
		if err := m.codec.Unmarshal(r.Payload(), req); err != nil {
			return reply, codecFailed(requestCode(err), "the request does not decode", err)
		}
		resp, err := f(r.Context(), req)
		if err != nil {
			return reply, err
		}
		if resp == nil {
			return reply, &Error{Code: Internal, Message: "the handler returned neither a reply nor an error"}
		}
		out, err := m.codec.Append(reply, resp)
		if err != nil {
			return reply, codecFailed(Internal, "the reply does not encode", err)
		}
		return out, nil
	}))
}

// Call calls the method of the other side of c and returns its reply, which is
// the caller's. req is encoded before anything is sent, and neither changed nor
// kept. When ctx ends, Call returns its error at once, as Conn.Call does.
//
// Every error says by NotRun whether the request can have run. NotRun holds of a
// req that is nil, which is an error with code InvalidArgument, and of one that
// does not encode: InvalidArgument too, or, where the codec's error is an *Error,
// that one's code. A reply that does not decode is an error with code Internal.
// The codec's error is the cause of these, for errors.As.
func (m Method[Req, Resp]) Call(ctx context.Context, c Caller, req *Req) (*Resp, error) {
	if req == nil {
		return nil, &Error{Code: InvalidArgument, Op: "call", Addr: m.name, Message: "nil request", notRun: true}
	}
	call := methodCalls.Get().(*Call)
	b, err := m.codec.Append(call.Request[:0], req)
	if err != nil {
		return nil, &Error{Code: requestCode(err), Op: "call", Addr: m.name, Message: "the request does not encode", Err: err, notRun: true}
	}
	*call = Call{Method: m.name, Request: b, Reply: call.Reply[:0]}
	if err := c.Do(ctx, call); err != nil {
		return nil, err // a Caller that gave up may not be done with the Call: it is not used again
	}
	resp := new(Resp)
	if err := m.codec.Unmarshal(call.Reply, resp); err != nil {
		return nil, &Error{Code: Internal, Op: "call", Addr: m.name, Message: "the reply does not decode", Err: err}
	}
	putMethodCall(call)
	return resp, nil
}

// methodCalls are Calls of Method.Call, with their buffers.
var methodCalls = sync.Pool{New: func() any { return new(Call) }}

func putMethodCall(call *Call) {
	if cap(call.Request) > maxFrame {
		call.Request = nil
	}
	if cap(call.Reply) > maxFrame {
		call.Reply = nil
	}
	methodCalls.Put(call)
}

// requestCode classifies a codec's error about a request: it is at fault, unless
// the codec says otherwise, as ours do of a type that they do not take.
func requestCode(err error) Code {
	var e *Error
	if errors.As(err, &e) && e.Code != OK {
		return e.Code
	}
	return InvalidArgument
}

// codecFailed is what a handler returns for a codec's error. The text is all that
// goes to the caller; a cause would only put the package's prefix into it.
func codecFailed(code Code, what string, err error) error {
	return &Error{Code: code, Message: what + ": " + strings.TrimPrefix(err.Error(), "plugwire: ")}
}

// codecType is a codec's error about a type that it does not take, which is a
// mistake of the program and not of a message.
func codecType(codec string, v any, takes string) error {
	return &Error{Code: Internal, Message: fmt.Sprintf("the %s codec does not take a %T: it takes %s", codec, v, takes)}
}

type jsonCodec struct{}

// jsonEncoder is a json.Encoder that appends to b.
type jsonEncoder struct {
	b   []byte
	enc *json.Encoder
}

func (e *jsonEncoder) Write(p []byte) (int, error) {
	e.b = append(e.b, p...)
	return len(p), nil
}

// jsonEncoders make a value cost no allocation of ours; json.Marshal makes one
// for its result.
var jsonEncoders = sync.Pool{New: func() any {
	e := new(jsonEncoder)
	e.enc = json.NewEncoder(e)
	e.enc.SetEscapeHTML(false)
	return e
}}

func (jsonCodec) Append(dst []byte, v any) ([]byte, error) {
	e := jsonEncoders.Get().(*jsonEncoder)
	e.b = dst
	if err := e.enc.Encode(v); err != nil {
		return dst, err // an Encoder may remember an error: it is not used again
	}
	out := e.b[:len(e.b)-1] // without the newline that Encode ends with
	e.b = nil
	jsonEncoders.Put(e)
	return out, nil
}

func (jsonCodec) Unmarshal(b []byte, v any) error { return json.Unmarshal(b, v) }

type binaryCodec struct{}

func (binaryCodec) Append(dst []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case encoding.BinaryAppender:
		out, err := v.AppendBinary(dst)
		if err != nil {
			return dst, err
		}
		return out, nil
	case encoding.BinaryMarshaler:
		b, err := v.MarshalBinary()
		if err != nil {
			return dst, err
		}
		return append(dst, b...), nil
	}
	return dst, codecType("Binary", v, "an encoding.BinaryAppender or encoding.BinaryMarshaler")
}

func (binaryCodec) Unmarshal(b []byte, v any) error {
	if v, ok := v.(encoding.BinaryUnmarshaler); ok {
		return v.UnmarshalBinary(b)
	}
	return codecType("Binary", v, "an encoding.BinaryUnmarshaler")
}

type rawCodec struct{}

func (rawCodec) Append(dst []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case *[]byte:
		return append(dst, *v...), nil
	case []byte:
		return append(dst, v...), nil
	case *string:
		return append(dst, *v...), nil
	case string:
		return append(dst, v...), nil
	}
	return dst, codecType("Raw", v, "a []byte, *[]byte, string or *string")
}

func (rawCodec) Unmarshal(b []byte, v any) error {
	switch v := v.(type) {
	case *[]byte:
		*v = append((*v)[:0], b...)
	case *string:
		*v = string(b)
	default:
		return codecType("Raw", v, "a *[]byte or *string")
	}
	return nil
}
