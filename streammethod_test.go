package plugwire

import (
	"errors"
	"io"
	"testing"
)

var sums = NewStreamMethod[sumRequest, sumReply]("sums", JSON)

// sumsMux answers every request by its sum, until the end of input.
func sumsMux() *Mux {
	m := NewMux()
	sums.Handle(m, func(s *TypedStream[sumReply, sumRequest]) error {
		for {
			r, err := s.Recv()
			if err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
			reply, err := sum(s.Context(), r)
			if err != nil {
				return err
			}
			if err := s.Send(reply); err != nil {
				return err
			}
		}
	})
	return m
}

func TestStreamMethod(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		x, y := pair(t, transport, nil, serves(sumsMux()))
		s, err := sums.Open(background, x)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			r := &sumRequest{Name: "n", Values: []float64{float64(i), 1}}
			want, err := sum(background, r)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Send(r); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Recv(); err != nil || *got != *want {
				t.Fatalf("%d: %v, %v", i, got, err)
			}
		}
		if err := s.Send(nil); CodeOf(err) != InvalidArgument {
			t.Errorf("nil: %v", err)
		}
		s.CloseSend()
		if _, err := s.Recv(); err != io.EOF {
			t.Error(err)
		}

		raw := openStream(t, x, "sums") // what does not decode ends this handler
		raw.Send([]byte("no JSON"))
		_, err = raw.Recv()
		var e *Error
		if !errors.As(err, &e) || e.Code != InvalidArgument {
			t.Error(err)
		}
		accounts(t, x, y)
	})
}

func TestStreamMethodMessageThatDoesNotDecode(t *testing.T) {
	m := NewMux()
	m.HandleStream("sums", func(s *Stream) error {
		s.Send([]byte("no JSON"))
		return s.Send([]byte("{}"))
	})
	x, _ := pair(t, "unix", nil, serves(m))
	s, err := sums.Open(background, x)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); CodeOf(err) != Internal || err.(*Error).Err == nil {
		t.Error(err)
	}
	if r, err := s.Recv(); err != nil || *r != (sumReply{}) {
		t.Errorf("the message behind it: %v, %v", r, err)
	}
	if _, err := s.Recv(); err != io.EOF {
		t.Error(err)
	}
	if _, err := NewStreamMethod[int, int]("none", JSON).Open(background, x); CodeOf(err) != Unimplemented {
		t.Error(err)
	}
	if NewStreamMethod[int, int]("x", JSON).name != "x" {
		t.Error("no name")
	}
}
