package plugwire

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Code classifies an error. The first 17 values are gRPC's canonical codes,
// with the same numbers and meanings
// (https://grpc.github.io/grpc/core/md_doc_statuscodes.html); from 256 on they
// are the application's own.
type Code uint16

// The canonical codes.
const (
	OK                 Code = 0
	Canceled           Code = 1
	Unknown            Code = 2
	InvalidArgument    Code = 3
	DeadlineExceeded   Code = 4
	NotFound           Code = 5
	AlreadyExists      Code = 6
	PermissionDenied   Code = 7
	ResourceExhausted  Code = 8
	FailedPrecondition Code = 9
	Aborted            Code = 10
	OutOfRange         Code = 11
	Unimplemented      Code = 12
	Internal           Code = 13
	Unavailable        Code = 14
	DataLoss           Code = 15
	Unauthenticated    Code = 16
)

var codeNames = [...]string{"OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound",
	"AlreadyExists", "PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange",
	"Unimplemented", "Internal", "Unavailable", "DataLoss", "Unauthenticated"}

// String returns the code's name, or Code(n) for one without.
func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("Code(%d)", uint16(c))
}

// Error is the error that this package returns where there is more to say than
// an error of net, io or context says. errors.As finds it, errors.Is sees
// through it: one with code Canceled or DeadlineExceeded matches
// context.Canceled or context.DeadlineExceeded also when it came from the peer.
type Error struct {
	Code    Code
	Op      string // listen, dial, handshake, launch, call, stream or close
	Addr    string // the address or method concerned, or ""
	Message string
	Hint    string // what the reader can do, or ""
	Detail  []byte // the application's own bytes, carried unchanged
	Err     error  // the cause, or nil

	notRun bool
	told   bool // it is the other side's reason
}

// Error returns "plugwire: op addr: message: cause (hint)", leaving out what is empty.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("plugwire:")
	if e.Op != "" {
		b.WriteString(" " + e.Op)
	}
	if e.Addr != "" {
		b.WriteString(" " + e.Addr)
	}
	if e.Op != "" || e.Addr != "" {
		b.WriteString(":")
	}
	switch {
	case e.Message != "":
		b.WriteString(" " + e.Message)
	case e.Err == nil:
		b.WriteString(" " + e.Code.String())
	}
	if e.Err != nil {
		if e.Message != "" {
			b.WriteString(":")
		}
		b.WriteString(" " + strings.TrimPrefix(e.Err.Error(), "plugwire: "))
	}
	if e.Hint != "" {
		b.WriteString(" (" + e.Hint + ")")
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is matches the context package's errors by code.
func (e *Error) Is(target error) bool {
	switch target {
	case context.Canceled:
		return e.Code == Canceled
	case context.DeadlineExceeded:
		return e.Code == DeadlineExceeded
	}
	return false
}

// Timeout reports whether a deadline passed, as net.Error has it.
func (e *Error) Timeout() bool { return e.Code == DeadlineExceeded }

// Temporary is there for net.Error, which Error satisfies; it is always false.
func (e *Error) Temporary() bool { return false }

var (
	// ErrNotPlugin is what ServePlugin returns in a process that no host launched.
	ErrNotPlugin = errors.New("plugwire: this program is a plugin: it is started by its host, not by hand")
	// ErrServerClosed is what Serve returns after Shutdown or Close.
	ErrServerClosed = errors.New("plugwire: server closed")
)

// CodeOf returns the code of an error: OK for nil, an *Error's own, Canceled or
// DeadlineExceeded for the context package's, else Unknown.
func CodeOf(err error) Code {
	if err == nil {
		return OK
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	switch {
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return DeadlineExceeded
	}
	return Unknown
}

// NotRun reports that the request which failed with err cannot have run: it was
// never sent in whole, or the other side refused it before any of its code saw
// it, or turned it away with Refused. Such a request can be sent again without
// running twice. False means that it may have run.
func NotRun(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.notRun
}

// Refused returns an error with which a Handler, most often middleware, turns a
// request away before it has acted on it in any way. NotRun is true of it, at
// the caller as well, who may therefore send the request again: only who returns
// it can know that, so nothing else that a handler returns has this effect, not
// even the error of a call of its own of which NotRun is true. Its Detail may be
// set before it is returned.
func Refused(code Code, message string) *Error {
	return &Error{Code: code, Message: message, notRun: true}
}
