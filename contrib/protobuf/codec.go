// Package protobuf lets plugwire's typed methods carry protocol buffers.
//
// Use Codec with plugwire.NewMethod. The method's types are the generated
// structs themselves, not pointers to them:
//
//	var Greet = plugwire.NewMethod[pb.GreetRequest, pb.GreetReply]("greet", protobuf.Codec)
//
// It is a module of its own, so that plugwire needs no protobuf library.
package protobuf

import (
	"fmt"

	"github.com/plugwire/plugwire"
	"google.golang.org/protobuf/proto"
)

// Codec encodes messages in the binary wire format
// (https://protobuf.dev/programming-guides/encoding/). It takes every
// proto.Message. The bytes of equal messages may differ. A message whose required
// fields are not all set, or with a string that must be UTF-8 and is not, neither
// encodes nor decodes; fields that the receiver does not know are kept. Of a value
// that is no proto.Message its error is a *plugwire.Error with code Internal.
var Codec plugwire.Codec = codec{}

type codec struct{}

func (codec) Append(dst []byte, v any) ([]byte, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return dst, notMessage(v)
	}
	out, err := proto.MarshalOptions{}.MarshalAppend(dst, m)
	if err != nil {
		return dst, err
	}
	return out, nil
}

func (codec) Unmarshal(b []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return notMessage(v)
	}
	return proto.Unmarshal(b, m)
}

// notMessage says what is wrong with a type, which is a mistake of the program
// and not of a message, and so not the InvalidArgument of a request.
func notMessage(v any) error {
	return &plugwire.Error{Code: plugwire.Internal, Message: fmt.Sprintf("the protobuf codec does not take a %T, which is no proto.Message", v),
		Hint: "the types of a Method are generated structs, not pointers to them"}
}
