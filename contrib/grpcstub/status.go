package grpcstub

import (
	"context"
	"errors"
	"strings"

	"github.com/plugwire/plugwire"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// A stubError is an error of plugwire as a gRPC status. status.FromError and
// status.Code take it; errors.As finds the *plugwire.Error, so that
// plugwire.NotRun and foreign Details can be asked for. It does not unwrap: what
// broke a connection may be io.EOF, which callers of Recv take for a good end.
type stubError struct {
	st  *status.Status
	err *plugwire.Error
}

func (e *stubError) Error() string              { return e.st.String() }
func (e *stubError) GRPCStatus() *status.Status { return e.st }

// As gives out the cause.
func (e *stubError) As(target any) bool {
	p, ok := target.(**plugwire.Error)
	if ok {
		*p = e.err
	}
	return ok
}

// Is matches the context package's errors by code, and equal statuses, as the
// status package's errors do.
func (e *stubError) Is(target error) bool {
	if s, ok := target.(interface{ GRPCStatus() *status.Status }); ok {
		return proto.Equal(e.st.Proto(), s.GRPCStatus().Proto())
	}
	return e.err.Is(target)
}

// fromWire makes a status error of an error of plugwire.
func fromWire(err error) error {
	var e *plugwire.Error
	if !errors.As(err, &e) {
		return status.FromContextError(err).Err()
	}
	return &stubError{statusOf(e), e}
}

func statusOf(e *plugwire.Error) *status.Status {
	if st := parseDetail(e.Detail); st != nil {
		return st
	}
	switch { // of this side's own context
	case e.Code == plugwire.DeadlineExceeded && errors.Is(e.Err, context.DeadlineExceeded):
		return status.New(codes.DeadlineExceeded, context.DeadlineExceeded.Error())
	case e.Code == plugwire.Canceled && errors.Is(e.Err, context.Canceled):
		return status.New(codes.Canceled, context.Canceled.Error())
	}
	code := codes.Code(e.Code)
	if !canonical(code) {
		code = codes.Unknown
	}
	text := e.Message
	if text == "" || e.Err != nil || e.Hint != "" {
		text = e.Error()
	}
	return status.New(code, strings.ToValidUTF8(text, "\uFFFD"))
}

// canonical reports whether a code is an error that plugwire has too.
func canonical(c codes.Code) bool { return c > codes.OK && c <= codes.Unauthenticated }

// toWire makes what plugwire sends of an error of a gRPC handler.
func toWire(err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		var e *plugwire.Error
		if errors.As(err, &e) {
			return err
		}
		st = status.FromContextError(err)
	}
	e := &plugwire.Error{Code: plugwire.Code(st.Code()), Message: st.Message()}
	switch {
	case st.Code() == codes.OK: // an error all the same
		e.Code = plugwire.Unknown
	case !canonical(st.Code()):
		e.Code, e.Detail = plugwire.Unknown, detailOf(st)
	case st.Message() == "" || len(st.Message()) > maxMessage || len(st.Proto().GetDetails()) > 0:
		e.Detail = detailOf(st)
	}
	return e
}

// maxMessage is how long a message plugwire carries in whole.
const maxMessage = 2 << 10

const (
	statusType = "type.googleapis.com/google.rpc.Status"
	// detailMark begins a Detail that is a status: the first field of the Any.
	detailMark = "\x0a\x25" + statusType
)

// detailOf returns the Detail of an error that stands for st.
func detailOf(st *status.Status) []byte {
	p := st.Proto() // a copy
	p.Message = strings.ToValidUTF8(p.GetMessage(), "\uFFFD")
	value, err := proto.Marshal(p)
	if err != nil {
		return nil
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&anypb.Any{TypeUrl: statusType, Value: value})
	if err != nil || !strings.HasPrefix(string(b), detailMark) {
		return nil
	}
	return b
}

// parseDetail returns the status in a Detail, or nil when there is none.
func parseDetail(b []byte) *status.Status {
	if len(b) < len(detailMark) || string(b[:len(detailMark)]) != detailMark {
		return nil
	}
	var (
		a anypb.Any
		p spb.Status
	)
	if proto.Unmarshal(b, &a) != nil || a.TypeUrl != statusType || proto.Unmarshal(a.Value, &p) != nil || p.Code == 0 {
		return nil
	}
	return status.FromProto(&p)
}
