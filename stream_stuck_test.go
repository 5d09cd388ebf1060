package plugwire

import (
	"fmt"
	"testing"
	"time"

	"github.com/plugwire/plugwire/internal/batch"
)

// TestResetOfAStreamWhoseConnectionIsStuck: the other side reads nothing, so that who
// sends waits for the connection rather than for credit: as the one who writes, or for
// room behind it. All go when another goroutine resets the stream, long before
// WriteTimeout ends the connection.
func TestResetOfAStreamWhoseConnectionIsStuck(t *testing.T) {
	for _, w := range ways {
		for _, c := range []struct{ senders, size int }{
			{1, 100}, {4, 100},
			{1, 20 << 10}, // written from where it is
			{1, 4 << 20}, {4, 1 << 20},
		} {
			t.Run(fmt.Sprintf("%v/%dx%d", w, c.senders, c.size), func(t *testing.T) {
				watchdog(t)
				a := meetStreams(t, w, nil, takesAll())
				s := openStream(t, a.c, "x")
				ended := make(chan error, c.senders)
				for range c.senders {
					go func() {
						var err error
						for b := make([]byte, c.size); err == nil; {
							err = s.Send(b)
						}
						ended <- err
					}()
				}
				stuck(t, a.c)
				s.Reset(Aborted)
				for range c.senders {
					if err := receive(t, "a sender", ended); CodeOf(err) != Aborted {
						t.Error(err)
					}
				}
			})
		}
	}
}

// TestResetBeforeAStreamHasBegun: its opening finds no room.
func TestResetBeforeAStreamHasBegun(t *testing.T) {
	for _, w := range ways {
		for name, use := range map[string]func(*Stream) error{
			"Send":       func(s *Stream) error { return s.Send(nil) },
			"CloseSend":  (*Stream).CloseSend,
			"SendHeader": (*Stream).SendHeader,
			"Header":     func(s *Stream) error { _, err := s.Header(); return err },
			"Recv":       func(s *Stream) error { _, err := s.Recv(); return err },
			"Write":      func(s *Stream) error { _, err := s.NetConn().Write([]byte("x")); return err },
			"Read":       func(s *Stream) error { _, err := s.NetConn().Read(make([]byte, 1)); return err },
		} {
			t.Run(fmt.Sprintf("%v/%s", w, name), func(t *testing.T) {
				watchdog(t)
				a := meetStreams(t, w, nil, takesAll())
				full, s := openStream(t, a.c, "x"), openStream(t, a.c, "x")
				go func() {
					for full.Send(make([]byte, 1000)) == nil {
					}
				}()
				stuck(t, a.c)
				a.c.out.Lock() // nobody will read it
				a.c.out.Put(append(a.c.out.Buffer(), make([]byte, batch.High)...))
				a.c.out.Unlock()
				ended := make(chan error, 1)
				go func() { ended <- use(s) }()
				time.Sleep(time.Millisecond) // it may wait by now
				s.Reset(Aborted)
				if err := receive(t, name, ended); CodeOf(err) != Aborted {
					t.Error(err)
				}
			})
		}
	}
}

// takesAll announces that credit is no hindrance.
func takesAll() *hello {
	h := streamHello()
	h.limits.streamWindow, h.limits.requestBytes = 1<<30, 1<<30
	return h
}

// stuck waits until nothing has gone out for a while though there is something to send.
func stuck(t *testing.T, c *Conn) {
	t.Helper()
	const still = 20 * time.Millisecond
	for last, since := uint64(0), time.Now(); time.Since(since) < still; time.Sleep(time.Millisecond) {
		c.out.Lock()
		sent, idle := c.out.Sent(), !c.out.Busy()
		c.out.Unlock()
		if sent != last || idle {
			last, since = sent, time.Now()
		}
	}
}
