package plugwire

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/plugwire/plugwire/internal/sockio"
)

// A slicer is a connection whose writes arrive in pieces, some of them late.
type slicer struct {
	net.Conn
	rand *rand.Rand
}

func (s *slicer) Write(b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		piece := len(b) - n
		switch s.rand.IntN(4) {
		case 0:
			piece = min(piece, 1+s.rand.IntN(2*frameHeaderLen))
		case 1, 2:
			piece = 1 + s.rand.IntN(piece)
		}
		var m int
		m, err = s.Conn.Write(b[n : n+piece])
		n += m
		if s.rand.IntN(50) == 0 { // long enough for the monitor to take the role from a borrower
			time.Sleep(5 * time.Millisecond)
		}
	}
	return n, err
}

// directPair is a pair of which x receives what y writes in pieces.
func directPair(t *testing.T, acceptorReceives bool, seed uint64, a, b *Config) (x, y *Conn) {
	anybody := func(*Peer) error { return nil } // a slicer has no credentials
	a.Authorize, b.Authorize = anybody, anybody
	dialled, accepted := netPair(t, "unix", nil)
	s := &slicer{rand: rand.New(rand.NewPCG(seed, 0))}
	if acceptorReceives {
		s.Conn = dialled
		y, x = openPair(t, s, accepted, b, a)
	} else {
		s.Conn = accepted
		x, y = openPair(t, dialled, s, a, b)
	}
	return x, y
}

// receiveInPieces sends messages in pieces, and says how many were read to where
// they were wanted, of how many.
func receiveInPieces(t *testing.T, acceptorReceives bool, seed uint64) (direct, received int) {
	t.Helper()
	const messages = 300
	m := echoMux(nil)
	m.HandleStream("receive", func(s *Stream) error {
		var b []byte
		for i := range messages {
			var err error
			keep := i % 3 // bytes in front that must stay
			b = append(b[:0], "abc"[:keep]...)
			if b, err = s.AppendRecv(b); err != nil {
				return err
			}
			if got, err := unseal(b[keep:]); err != nil || got != uint64(i) || string(b[:keep]) != "abc"[:keep] {
				t.Errorf("message %d: %d, %v, behind %q", i, got, err, b[:keep])
			}
			if p := s.in.place; p != nil && p.done {
				direct++
				p.done = false
			}
			received++
		}
		if _, err := s.AppendRecv(b[:0]); err != io.EOF {
			t.Errorf("behind the last message: %v", err)
		}
		return nil
	})
	x, y := directPair(t, acceptorReceives, seed, serves(m), &Config{})
	s, err := y.OpenStream(background, "receive")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() { // what comes between
		for i := uint64(0); ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
			if err := checkCall(background, y, int(i)%40_000, i); err != nil {
				t.Errorf("call %d: %v", i, err)
			}
		}
	})
	r := rand.New(rand.NewPCG(seed, 1))
	size := 40_000
	for i := range messages {
		switch r.IntN(16) {
		case 0:
			size = 8 + r.IntN(65_000)
		case 1:
			size = 65_536
		case 2:
			size = 100_000 // several frames
		}
		if err := s.Send(sealed(size, uint64(i))); err != nil {
			t.Fatal(err)
		}
	}
	s.CloseSend()
	if _, err := s.Recv(); err != io.EOF {
		t.Error(err)
	}
	close(stop)
	wg.Wait()
	accounts(t, x, y)
	return direct, received
}

// Messages of one length and of others, and what else comes between them, arrive
// whole and in order, in whatever pieces.
func TestMessagesReadToWhereTheyAreWanted(t *testing.T) {
	plainOnly(t)
	if !sockio.TwoAvailable {
		t.Skip("messages are not read to where they are wanted on this system")
	}
	for _, acceptorReceives := range []bool{false, true} {
		t.Run(map[bool]string{false: "dialler", true: "acceptor"}[acceptorReceives], func(t *testing.T) {
			t.Parallel()
			watchdog(t)
			direct, received := 0, 0
			// A receiver that is slower than the sender leaves reading to the reader.
			for round := uint64(0); round < 20 && (direct == 0 || direct == received); round++ {
				d, r := receiveInPieces(t, acceptorReceives, round)
				direct, received = direct+d, received+r
			}
			t.Logf("%d of %d messages were read to where they were wanted", direct, received)
			if direct == 0 || direct == received {
				t.Error("this has tried only one of both ways")
			}
		})
	}
}

// A message of which a part has been read to where it is wanted neither keeps its
// receiver nor harms what follows when the stream or the connection ends there.
func TestEndInsideAMessageReadToWhereItIsWanted(t *testing.T) {
	if !sockio.TwoAvailable {
		t.Skip("messages are not read to where they are wanted on this system")
	}
	const size = 40_000
	first, second := fill(size, 1), fill(size, 2)
	for _, end := range []string{"reset", "close", "cut"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			watchdog(t)
			for i := range scaled(40) {
				streams, ended := make(chan *Stream, 1), make(chan error, 1)
				a := meetServing(t, way{"unix", true}, &Config{}, streamHello(), func(a *adversary) *Mux {
					m := a.mux()
					m.HandleStream("receive", func(s *Stream) error {
						b, err := s.AppendRecv(make([]byte, 0, size))
						if !bytes.Equal(b, first) || err != nil {
							t.Errorf("the first message: %d bytes, %v", len(b), err)
						}
						streams <- s
						b, err = s.AppendRecv(b[:0])
						if len(b) > 0 || err == nil {
							t.Errorf("half a message: %d bytes, %v", len(b), err)
						}
						ended <- err
						return err
					})
					return m
				})
				message := data(1, string(second))
				a.send(cat(openFrame(mUnannounced, 1), data(1, string(first))))
				s := receive(t, "the first message", streams)
				half := rand.IntN(len(message))
				a.send(message[:half])
				time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond) // until the monitor takes the role, or not
				switch end {
				case "reset":
					s.Reset(Aborted)
					receive(t, "the receiver's end", ended)
					a.send(message[half:])
					a.send(resetFrame(1))
					a.alive("RESET BACK 10 #1", "CLOSE BACK|LAST 10 #1")
				case "close":
					go s.conn.Close() // which waits for the adversary
				case "cut":
					a.nc.Close()
				}
				if end != "reset" {
					if err := receive(t, "the receiver's end", ended); err == io.EOF {
						t.Errorf("round %d: %v", i, err)
					}
				}
				a.close()
				accounts(t, a.c)
			}
		})
	}
}
