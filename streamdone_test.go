package plugwire

import (
	"context"
	"io"
	"testing"
)

// TestStreamsSayWhenTheyAreOver: Done and Err tell of every end, without Recv.
func TestStreamsSayWhenTheyAreOver(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		m := NewMux()
		accepted := make(chan *Stream, 1)
		m.HandleStream("s", func(s *Stream) error {
			accepted <- s
			what, err := s.Recv()
			switch {
			case err != nil:
				return err
			case string(what) == "error":
				return &Error{Code: NotFound, Message: "no"}
			case string(what) == "wait":
				<-s.Done()
				return s.Err()
			}
			return nil
		})
		for what, end := range map[string]struct {
			code Code
			f    func(s *Stream, cancel func(), x, y *Conn)
		}{
			"well":  {},
			"error": {code: NotFound},
			"wait":  {Aborted, func(s *Stream, _ func(), _, _ *Conn) { s.Reset(Aborted) }},
			"close": {Canceled, func(s *Stream, _ func(), _, _ *Conn) { s.Close() }},
			"ctx":   {Canceled, func(_ *Stream, cancel func(), _, _ *Conn) { cancel() }},
			"conn":  {Unavailable, func(_ *Stream, _ func(), _, y *Conn) { y.Close() }},
		} {
			x, y := pair(t, transport, nil, serves(m))
			ctx, cancel := context.WithCancel(background)
			s, err := x.OpenStream(ctx, "s")
			if err != nil {
				t.Fatal(err)
			}
			early := s.Done()
			if s.Err() != nil {
				t.Errorf("%s: ended at once with %v", what, s.Err())
			}
			if end.f == nil || what == "wait" {
				if err := s.Send([]byte(what)); err != nil {
					t.Fatal(err)
				}
			} else if err := s.SendHeader(); err != nil {
				t.Fatal(err)
			}
			other := receive(t, "the handler", accepted)
			if end.f != nil {
				end.f(s, cancel, x, y)
			}
			receive(t, what, early)
			receive(t, what, s.Done())
			if err := s.Err(); end.code == OK && err != io.EOF || end.code != OK && CodeOf(err) != end.code {
				t.Errorf("%s: %v", what, err)
			}
			if what == "close" || what == "ctx" {
				receive(t, what, other.Done())
			}
			cancel()
			s.Close()
		}
	})
}
