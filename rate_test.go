package plugwire

import (
	"context"
	"strings"
	"testing"
	"time"
)

// MaxRate is one limit for all connections of a Server: calls beyond it are
// refused unrun, one-way messages wait for their turn, in order.
func TestMaxRate(t *testing.T) {
	got := make(chan byte, 8)
	mux := NewMux()
	mux.HandleFunc("note", func(_ context.Context, b []byte) ([]byte, error) {
		got <- b[0]
		return nil, nil
	})
	s := &Server{Mux: mux, Config: &Config{Limits: Limits{MaxRate: 50, MaxBurst: 2}}}
	l, err := s.Listen(localTransport + ":")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	defer s.Close()
	var conns [2]*Conn
	for i := range conns {
		if conns[i], err = Dial(t.Context(), addrURI(l.Addr()), nil); err != nil {
			t.Fatal(err)
		}
		defer conns[i].Close()
	}
	begun := time.Now()
	for i := range byte(6) {
		if err := conns[0].Notify(t.Context(), "note", []byte{i}); err != nil {
			t.Fatal(err)
		}
	}
	if err := conns[0].Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < 4*time.Second/50 {
		t.Errorf("6 messages took %v, of which 4 had to wait 20 ms each", took)
	}
	for i := range byte(6) {
		if n := <-got; n != i {
			t.Errorf("message %d instead of %d", n, i)
		}
	}
	refused := 0
	for range 100 {
		if _, err := conns[1].Call(t.Context(), "note", []byte{0}); err != nil {
			wantCode(t, err, ResourceExhausted, true)
			if !strings.Contains(err.Error(), "Limits.MaxRate") {
				t.Error(err)
			}
			refused++
		} else {
			<-got
		}
	}
	if refused == 0 {
		t.Error("100 calls at once, and none was refused")
	}
}

func TestMaxRateThatIsNoLimit(t *testing.T) {
	inf := 1.0
	for range 2000 {
		inf *= 2
	}
	for _, rate := range []float64{0, -1, inf, inf - inf} {
		if newRateLimit(&Limits{MaxRate: rate}) != nil {
			t.Errorf("%v is a limit", rate)
		}
	}
}
