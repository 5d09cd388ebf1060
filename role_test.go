package plugwire

import (
	"testing"

	"github.com/plugwire/plugwire/internal/sockio"
)

// roleState returns the state of c's reading role.
func roleState(c *Conn) uint64 { return c.role.Load() & roleMask }

// unwatched keeps the monitor away from c, so that only the test looks.
func unwatched(t *testing.T, c *Conn) {
	until(t, "a quiet connection", func() bool { return !c.watched.Load() })
	c.watched.Store(true)
}

// TestRecvReadsItself: who receives alone has the reading role while it waits,
// and nobody has it while it works on a message. What arrives meanwhile is found
// by the monitor, and then the role is not let go for a while.
func TestRecvReadsItself(t *testing.T) {
	if !sockio.Available {
		t.Skip("reading needs a goroutine of its own here")
	}
	watchdog(t)
	got, next := make(chan string), make(chan struct{})
	m := echoMux(nil)
	m.HandleStream("work", func(s *Stream) error {
		for {
			b, err := s.Recv()
			if err != nil {
				return nil
			}
			got <- string(b)
			<-next
		}
	})
	x, y := pair(t, "unix", nil, serves(m))
	unwatched(t, y)
	s := openStream(t, x, "work")
	send := func(msg string) {
		t.Helper()
		if err := s.Send([]byte(msg)); err != nil {
			t.Fatal(err)
		}
		x.out.Flush()
		if b := receive(t, "a message", got); b != msg {
			t.Fatalf("%q instead of %q", b, msg)
		}
	}
	send("one")
	until(t, "the reader to let go", func() bool { return roleState(y) == roleFree })
	next <- struct{}{}
	until(t, "Recv to read", func() bool { return roleState(y) == roleBorrowed })
	send("two")
	until(t, "Recv to let go", func() bool { return roleState(y) == roleFree })

	called := make(chan error, 1)
	go func() {
		_, err := x.Call(background, "echo", []byte("hello"))
		called <- err
	}()
	until(t, "the request", func() bool {
		x.out.Lock()
		defer x.out.Unlock()
		return x.out.Sent() == x.out.Position() && x.callsSent > 0
	})
	select {
	case err := <-called:
		t.Fatalf("answered (%v), but nobody reads", err)
	default:
	}
	y.looked()
	y.looked()
	if err := receive(t, "the reply", called); err != nil {
		t.Fatal(err)
	}
	next <- struct{}{}
	send("three")
	next <- struct{}{}
	send("four")
	if state := roleState(y); state != roleReading {
		t.Errorf("the role is in state %d after frames had to wait", state)
	}
	y.watched.Store(false)
	close(next)
}
