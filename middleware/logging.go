package middleware

import (
	"context"
	"log/slog"
	"time"

	"github.com/plugwire/plugwire"
)

// Logging returns middleware that logs one record, "plugwire: call", when a
// handler has ended. Its attributes are
//
//	method     the name that was called
//	peer       a group: transport, and uid and pid where the kernel told them
//	duration   how long the handler took, with the middleware inside this one
//	code       how it ended, as the caller learns it: OK, NotFound ...
//	bytes_in   the request's payload
//	bytes_out  the reply's; 0 when there is none
//	one_way    true, of a one-way message only
//	error      the text of the error, if there is one
//
// Payloads, and the Detail of an *Error, are never logged. An error's text is cut
// at 2 KiB, for it may be what some other peer wrote.
//
// level tells the level of a record by its code; nil is LevelOf. Nothing is
// allocated when the logger is not enabled for it, which is asked without the
// request's context; the record has it, so that a slog.Handler finds what
// plugwire.InfoFromContext has to say. A nil logger logs nothing.
//
// A handler that panics or ends its goroutine is logged with code Internal. What
// this package or plugwire turns away is logged when Logging is outside of it,
// except for requests that plugwire refuses before any middleware sees them.
func Logging(l *slog.Logger, level func(plugwire.Code) slog.Level) func(plugwire.Handler) plugwire.Handler {
	if level == nil {
		level = LevelOf
	}
	return func(next plugwire.Handler) plugwire.Handler {
		if l == nil {
			return next
		}
		return &logged{logger: l, level: level, next: next}
	}
}

// LevelOf is the level at which Logging logs a request that ended with the code:
// Info where all is well or the caller is told what it asked for (OK, NotFound,
// the application's own codes ...), Warn where somebody may want to know
// (DeadlineExceeded, ResourceExhausted ...), Error where something is broken
// (Internal, Unknown, which is an error without a code, ...). The assignment is
// that of github.com/grpc-ecosystem/go-grpc-middleware.
func LevelOf(code plugwire.Code) slog.Level {
	switch code {
	case plugwire.OK, plugwire.Canceled, plugwire.InvalidArgument, plugwire.NotFound,
		plugwire.AlreadyExists, plugwire.Unauthenticated:
		return slog.LevelInfo
	case plugwire.DeadlineExceeded, plugwire.PermissionDenied, plugwire.ResourceExhausted,
		plugwire.FailedPrecondition, plugwire.Aborted, plugwire.OutOfRange, plugwire.Unavailable:
		return slog.LevelWarn
	}
	if code >= 256 {
		return slog.LevelInfo
	}
	return slog.LevelError
}

type logged struct {
	logger *slog.Logger
	level  func(plugwire.Code) slog.Level
	next   plugwire.Handler
}

// outcome is what became of a request.
type outcome struct {
	start    time.Time
	in, out  int
	err      error
	returned bool // the handler did not panic and did not end its goroutine
}

// ServeCall implements plugwire.Handler.
func (h *logged) ServeCall(r *plugwire.Request, reply []byte) (out []byte, err error) {
	o := outcome{start: time.Now(), in: len(r.Payload())}
	// Deferred rather than recovered: plugwire logs the panic with its stack.
	defer func() {
		o.out, o.err = len(out)-len(reply), err
		h.log(r, o)
	}()
	out, err = h.next.ServeCall(r, reply)
	o.returned = true
	return out, err
}

func (h *logged) log(r *plugwire.Request, o outcome) {
	code := plugwire.CodeOf(o.err)
	switch {
	case !o.returned:
		code = plugwire.Internal
	case o.err != nil && code == plugwire.OK: // an error is never a success
		code = plugwire.Unknown
	}
	if level := h.level(code); h.logger.Enabled(context.Background(), level) {
		h.record(r, o, code, level)
	}
}

// maxErrorText is how much of an error's text is logged.
const maxErrorText = 2 << 10

// record is a function of its own so that its allocations are made only when
// they are needed.
func (h *logged) record(r *plugwire.Request, o outcome, code plugwire.Code, level slog.Level) {
	peer := []slog.Attr{slog.String("transport", r.Peer().Transport)}
	if p := r.Peer(); p.Verified {
		for _, id := range []struct {
			name string
			id   int
		}{{"uid", p.UID}, {"pid", p.PID}} {
			if id.id >= 0 { // not every system tells both
				peer = append(peer, slog.Int(id.name, id.id))
			}
		}
	}
	if r.OneWay() || o.err != nil || !o.returned {
		o.out = 0 // nobody gets it
	}
	attrs := append(make([]slog.Attr, 0, 8),
		slog.String("method", r.Method()),
		slog.Attr{Key: "peer", Value: slog.GroupValue(peer...)},
		slog.Duration("duration", time.Since(o.start)),
		slog.String("code", code.String()),
		slog.Int("bytes_in", o.in),
		slog.Int("bytes_out", o.out))
	if r.OneWay() {
		attrs = append(attrs, slog.Bool("one_way", true))
	}
	switch {
	case !o.returned:
		attrs = append(attrs, slog.String("error", "the handler panicked or ended its goroutine"))
	case o.err != nil:
		text := o.err.Error()
		attrs = append(attrs, slog.String("error", text[:min(len(text), maxErrorText)]))
	}
	h.logger.LogAttrs(r.Context(), level, "plugwire: call", attrs...)
}
