//go:build !plugwire_notls

package plugwire

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// moreThanTurns is more than there are turns.
func moreThanTurns() int { return runtime.GOMAXPROCS(0) + 32 }

// allTurns takes every turn, so that handshakes wait, until the test ends or give
// is called.
func allTurns(t *testing.T) (give func()) {
	t.Helper()
	ended, cancel := context.WithCancel(background)
	var held atomic.Int32
	var wg sync.WaitGroup
	for range moreThanTurns() { // of which some wait for ever
		wg.Go(func() {
			if handshakeTurns.Take(ended, 0) == nil {
				held.Add(1)
			}
		})
	}
	until(t, "the turns to be taken", func() bool { return int(held.Load())+handshakeTurns.Waiting() == moreThanTurns() })
	cancel()
	wg.Wait()
	give = sync.OnceFunc(func() {
		for range held.Load() {
			handshakeTurns.Give()
		}
	})
	t.Cleanup(give)
	return give
}

// secondLook returns hello without its key shares, so that a server asks for
// another.
func secondLook(t *testing.T, hello []byte) []byte {
	t.Helper()
	const keyShares, unknown = "\x00\x33", "\xfa\xfa"
	if bytes.Count(hello, []byte(keyShares)) != 1 {
		t.Skip("the extension is not to be told from the random bytes")
	}
	return bytes.Replace(hello, []byte(keyShares), []byte(unknown), 1)
}

// T17: a handshake that waits for anybody does not keep its turn.
func TestT17WhoWaitsHasNoTurn(t *testing.T) {
	count := moreThanTurns()
	t.Run("the other side", func(t *testing.T) {
		for _, row := range stallsOverTLS(t) {
			t.Run(row.name, func(t *testing.T) {
				watchdog(t)
				_, addr, _ := served(t, "unix", echoMux(nil), &Config{TLS: testTLS(), HandshakeTimeout: time.Minute})
				gather(t, addr, count, says(row.send))
				goodClients(t, addr, row.cfg, 2)
			})
		}
	})
	t.Run("a second ClientHello", func(t *testing.T) {
		watchdog(t)
		_, addr, _ := served(t, "unix", echoMux(nil), &Config{TLS: testTLS(), HandshakeTimeout: time.Minute})
		rows := stallsOverTLS(t)
		hello := secondLook(t, rows[len(rows)-1].send)
		gather(t, addr, count, func(nc net.Conn) error {
			nc.Write(hello)
			answer := make([]byte, 5+4+2+32)
			if _, err := io.ReadFull(nc, answer); err != nil {
				return err
			}
			if random := answer[11:]; !bytes.HasPrefix(random, []byte{0xcf, 0x21, 0xad, 0x74}) { // RFC 8446, 4.1.3
				return errors.New("the server did not ask for another ClientHello")
			}
			return nil
		})
		goodClients(t, addr, &Config{TLS: testTLS()}, 2)
	})
	ca := newTestCA(t)
	identity := func() TLSConfig {
		c := ca.trusting(ca.issue(t, nil))
		c.Names = []string{testName}
		return c
	}
	asks := map[string]func(*TLSConfig, func()){
		"the function for the certificate": func(c *TLSConfig, wait func()) {
			get := c.cert.(func() (*tls.Certificate, error))
			c.SetCertificateFunc(func() (*tls.Certificate, error) { wait(); return get() })
		},
		"the function for the authorities": func(c *TLSConfig, wait func()) {
			get := c.roots.(func() (*x509.CertPool, error))
			c.SetRoots(func() (*x509.CertPool, error) { wait(); return get() })
		},
	}
	for what, set := range asks {
		t.Run(what, func(t *testing.T) {
			watchdog(t)
			var asked atomic.Int32
			release := make(chan struct{})
			cfg := &Config{TLS: identity(), HandshakeTimeout: time.Minute}
			set(&cfg.TLS, func() {
				if asked.Add(1) <= int32(count) {
					<-release
				}
			})
			_, addr, _ := served(t, "unix", echoMux(nil), cfg)
			ctx, cancel := context.WithTimeout(background, adversaryPatience)
			defer cancel()
			var wg sync.WaitGroup
			for range count {
				wg.Go(func() {
					c, err := Dial(ctx, addr, testConfig(&Config{TLS: identity(), HandshakeTimeout: time.Minute}))
					if err != nil {
						t.Error(err)
						return
					}
					closeBoth(c)
				})
			}
			until(t, "it to be asked", func() bool { return asked.Load() == int32(count) })
			goodClients(t, addr, &Config{TLS: identity()}, 2)
			close(release)
			wg.Wait()
		})
	}
}

// T17: it is the newest that is answered first, whoever has waited how long.
func TestT17TheNewestHandshakeIsAnsweredFirst(t *testing.T) {
	watchdog(t)
	const count = 200 // whose answers take longer than it may take until they are read
	_, addr, _ := served(t, "unix", echoMux(nil), &Config{TLS: testTLS(), HandshakeTimeout: time.Minute})
	rows := stallsOverTLS(t)
	hello := rows[len(rows)-1].send
	give := allTurns(t)
	var mu sync.Mutex
	var answered []int // the youngest has the highest number
	var wg sync.WaitGroup
	for i := range count {
		nc := gather(t, addr, 1, says(hello))[0]
		until(t, "it to wait", func() bool { return handshakeTurns.Waiting() == i+1 })
		wg.Go(func() {
			if _, err := nc.Read(make([]byte, 1)); err != nil {
				t.Error(err)
			}
			mu.Lock()
			answered = append(answered, i)
			mu.Unlock()
		})
	}
	give()
	wg.Wait()
	if slices.Index(answered, count-1) > slices.Index(answered, 0) {
		t.Errorf("the oldest was answered before the newest: %v", answered)
	}
}

// T17: who waits for its turn is still bound by the deadline, and makes room.
func TestT17WhoWaitsForItsTurnEnds(t *testing.T) {
	t.Run("at the deadline", func(t *testing.T) {
		watchdog(t)
		allTurns(t)
		nc, server := net.Pipe()
		defer nc.Close()
		errs := make(chan error, 1)
		go func() {
			s := &Server{Mux: NewMux(), Config: testConfig(&Config{TLS: testTLS(), HandshakeTimeout: 50 * time.Millisecond})}
			errs <- s.ServeConn(background, server)
		}()
		rows := stallsOverTLS(t)
		nc.Write(rows[len(rows)-1].send)
		if err := receive(t, "the handshake's end", errs); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	})
	t.Run("for a newer one", func(t *testing.T) {
		watchdog(t)
		s, addr, _ := served(t, "unix", echoMux(nil), &Config{TLS: testTLS(), HandshakeTimeout: time.Minute, Limits: Limits{MaxHandshakes: 4}})
		give := allTurns(t)
		rows := stallsOverTLS(t)
		before := arrivals.Load()
		conns := gather(t, addr, 20, says(rows[len(rows)-1].send))
		until(t, "all but four to end", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return arrivals.Load() == before+20 && len(s.handshakes) == 4 && handshakeTurns.Waiting() == 4
		})
		give()
		var answered, ended atomic.Int32
		var wg sync.WaitGroup
		for _, nc := range conns {
			wg.Go(func() {
				if n, _ := nc.Read(make([]byte, 1)); n == 1 {
					answered.Add(1)
				} else {
					ended.Add(1)
				}
			})
		}
		wg.Wait()
		if answered.Load() != 4 || ended.Load() != 16 {
			t.Errorf("%d were answered and %d ended without", answered.Load(), ended.Load())
		}
		goodClients(t, addr, &Config{TLS: testTLS()}, 1)
	})
}

// turnTaker is a client that takes all turns once it has been answered.
type turnTaker struct {
	net.Conn
	t     *testing.T
	taken bool
}

func (c *turnTaker) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && !c.taken {
		c.taken = true
		allTurns(c.t)
	}
	return n, err
}

// T17: who has been answered, and goes on, does not wait for those who come later
// and only say hello.
func TestT17WhoIsAnsweredWaitsForNobody(t *testing.T) {
	watchdog(t)
	_, addr, _ := served(t, "unix", echoMux(nil), &Config{TLS: testTLS(), HandshakeTimeout: time.Minute})
	nc := gather(t, addr, 1, says(nil))[0]
	nc.SetDeadline(time.Time{})
	ctx, cancel := context.WithTimeout(background, adversaryPatience)
	defer cancel()
	anybody := func(*Peer) error { return nil } // a turnTaker has no credentials
	c, err := NewConn(ctx, &turnTaker{Conn: nc, t: t}, testConfig(&Config{TLS: testTLS(), Authorize: anybody}))
	if err != nil {
		t.Fatal(err)
	}
	defer closeBoth(c)
	if err := checkCall(ctx, c, 100, 1); err != nil {
		t.Error(err)
	}
}
