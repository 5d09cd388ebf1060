package plugwire

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

type markKey struct{}

// marks has middleware that adds a mark to the context.
func marks(s string) func(Handler) Handler {
	return func(next Handler) Handler {
		return HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			before, _ := r.Context().Value(markKey{}).(string)
			r.SetContext(context.WithValue(r.Context(), markKey{}, before+s))
			return next.ServeCall(r, reply)
		})
	}
}

// TestMiddlewareGivesHandlersAContext: every form of handler gets what the
// middleware has set, which ends with the request, and no later request does.
func TestMiddlewareGivesHandlersAContext(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		kept := make(chan context.Context, 1000)
		see := func(ctx context.Context) string {
			info, ok := InfoFromContext(ctx)
			if !ok || ctx.Err() != nil {
				t.Errorf("Info %v, %v", ok, ctx.Err())
				return ""
			}
			info.SetReplyMetadata(Metadata{"seen": "yes"})
			kept <- ctx
			s, _ := ctx.Value(markKey{}).(string)
			return s
		}
		m := NewMux()
		m.Handle("bare", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			return append(reply, see(r.Context())...), nil
		}))
		m.HandleFunc("func", func(ctx context.Context, _ []byte) ([]byte, error) { return []byte(see(ctx)), nil })
		typed := NewMethod[[]byte, string]("typed", Raw)
		typed.Handle(m, func(ctx context.Context, _ *[]byte) (*string, error) { s := see(ctx); return &s, nil })
		m.Use(marks("a"), marks("b"))
		x, _ := pair(t, transport, nil, serves(m))
		const rounds = 20
		for range rounds {
			for _, name := range m.Methods() {
				call := &Call{Method: name, Request: make([]byte, 10)}
				if err := x.Do(background, call); err != nil {
					t.Fatal(err)
				}
				if string(call.Reply) != "ab" || call.ReplyMetadata["seen"] != "yes" {
					t.Errorf("%s: the context has %q, reply metadata %v", name, call.Reply, call.ReplyMetadata)
				}
				if err := x.Notify(background, name, nil); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := x.Flush(background); err != nil {
			t.Fatal(err)
		}
		for range 2 * rounds * len(m.Methods()) {
			ctx := receive(t, "a context", kept)
			receive(t, "its end", ctx.Done())
			if s := ctx.Value(markKey{}); s != "ab" {
				t.Errorf("a kept context has %q", s)
			}
		}
	})
}

// TestMiddlewareEndsAContextEarly: what it sets bounds the handler.
func TestMiddlewareEndsAContextEarly(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		m := NewMux()
		m.HandleFunc("wait", func(ctx context.Context, _ []byte) ([]byte, error) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		})
		m.Use(func(next Handler) Handler {
			return HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
				ctx, cancel := context.WithCancelCause(r.Context())
				cancel(&Error{Code: ResourceExhausted, Message: "enough"})
				r.SetContext(ctx)
				return next.ServeCall(r, reply)
			})
		})
		x, _ := pair(t, transport, nil, serves(m))
		if _, err := x.Call(background, "wait", nil); CodeOf(err) != ResourceExhausted {
			t.Error(err)
		}
	})
}

func TestAStreamHandlerGetsAContext(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		kept := make(chan context.Context, 1)
		m := NewMux()
		m.HandleStream("s", func(s *Stream) error {
			s.SetContext(context.WithValue(s.Context(), markKey{}, "a"))
			if info, ok := InfoFromContext(s.Context()); !ok || info.Method != "s" {
				t.Error("no Info")
			}
			kept <- s.Context()
			return s.Send(fmt.Append(nil, s.Context().Value(markKey{})))
		})
		x, _ := pair(t, transport, nil, serves(m))
		s, err := x.OpenStream(background, "s")
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if got, err := s.Recv(); string(got) != "a" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		ctx := receive(t, "the context", kept)
		receive(t, "its end", ctx.Done())
		if !errors.Is(ctx.Err(), context.Canceled) {
			t.Error(ctx.Err())
		}
	})
}

func TestANilContextPanics(t *testing.T) {
	for name, set := range map[string]func(context.Context){
		"request": new(Request).SetContext,
		"stream":  new(Stream).SetContext,
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			set(nil)
		}()
	}
}
