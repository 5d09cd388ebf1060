package plugwire

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// A connection works in a bubble of testing/synctest, where time passes when all
// wait, and leaves nothing behind that those outside would meet.
func TestBubbles(t *testing.T) {
	const long = time.Hour
	m := echoMux(nil)
	m.Handle("long", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		select {
		case <-time.After(long):
			return reply, nil
		case <-r.Context().Done():
			return reply, r.Context().Err()
		}
	}))
	m.HandleStream("stream", func(s *Stream) error {
		for {
			b, err := s.Recv()
			if err == io.EOF {
				return nil
			} else if err != nil {
				return err
			} else if err := s.Send(b); err != nil {
				return err
			}
		}
	})
	open := func(t *testing.T) (x, y *Conn) {
		a, b := net.Pipe()
		accepted := make(chan *Conn, 1)
		go func() {
			y, err := open(background, b, false, "", serves(m).inRole(asServer).withDefaults())
			if err != nil {
				t.Error(err)
			}
			accepted <- y
		}()
		x, err := NewConn(background, a, nil)
		if err != nil {
			t.Fatal(err)
		}
		return x, <-accepted
	}
	use := func(t *testing.T, x *Conn) {
		for range 20 { // waits for room
			if err := x.Notify(background, "echo", make([]byte, 64<<10)); err != nil {
				t.Fatal(err)
			}
		}
		if err := x.Flush(background); err != nil {
			t.Fatal(err)
		}
		calls := make([]*Call, 10)
		for i := range calls {
			calls[i] = &Call{Method: "echo", Request: []byte("request")}
		}
		if err := x.DoAll(background, calls); err != nil {
			t.Fatal(err)
		}
		s, err := x.OpenStream(background, "stream")
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if err := s.Send([]byte("message")); err != nil {
				t.Fatal(err)
			}
			if b, err := s.Recv(); err != nil || string(b) != "message" {
				t.Fatalf("%q, %v", b, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	outside := func(t *testing.T) {
		x, y := open(t)
		defer y.Close()
		defer x.Close()
		use(t, x)
	}
	outside(t)
	stay, y := open(t) // while the bubbles come and go
	defer y.Close()
	defer stay.Close()
	for range 3 {
		use(t, stay)
		synctest.Test(t, func(t *testing.T) {
			x, y := open(t)
			defer y.Close()
			defer x.Close()
			use(t, x)
			start := time.Now()
			ctx, cancel := context.WithTimeout(background, time.Minute)
			defer cancel()
			if _, err := x.Call(ctx, "long", nil); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Minute {
				t.Errorf("%v after %v", err, time.Since(start))
			}
			start = time.Now()
			if _, err := x.Call(background, "long", nil); err != nil || time.Since(start) != long {
				t.Errorf("%v after %v", err, time.Since(start))
			}
		})
		use(t, stay)
		outside(t)
	}
}
