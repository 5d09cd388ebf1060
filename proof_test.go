package plugwire

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// withSecret returns a Config of a side that knows a secret.
func withSecret(key *secret) *Config { return &Config{Mux: NewMux(), secret: key} }

// meetStrangerWith is meetStranger with a secret, past both HELLOs: the stranger
// has read the listener's PROOF, and may send its own.
func meetStrangerWith(t *testing.T, key *secret) (x *stranger, theirs, right []byte) {
	t.Helper()
	dialled, accepted := socketPair(t, "unix")
	x = &stranger{dialled, make(chan error, 1)}
	mux := NewMux()
	mux.HandleFunc("echo", func(_ context.Context, b []byte) ([]byte, error) {
		t.Error("a handler ran")
		return b, nil
	})
	go func() {
		cfg := withSecret(key)
		cfg.Mux = mux
		c, err := open(context.Background(), accepted, false, "", cfg.withDefaults())
		if err == nil {
			c.fail(closedError)
		}
		x.served <- err
	}()
	x.SetDeadline(time.Now().Add(adversaryPatience))
	t.Cleanup(func() { x.Close() })
	h := adversaryHello()
	h.required = []string{featureProof}
	hello := helloBytes(h)
	x.Write(hello)
	answer, told, err := readHello(x)
	if err != nil || told {
		t.Fatal(told, err)
	}
	head, payload, err := readOpeningFrame(x, FrameProof)
	if err != nil || head.Type != FrameProof {
		t.Fatal(head, err)
	}
	return x, payload, key.proof(roleDialler, hashHellos(hello, answer.sent), nil)
}

func TestProofIsTheDocumentedHMAC(t *testing.T) {
	var key secret
	for i := range key {
		key[i] = byte(i)
	}
	hellos := hashHellos([]byte("the dialler's"), []byte("the listener's"))
	binding := bytes.Repeat([]byte{0xbb}, 32)
	// import hmac, hashlib as h; key = bytes(range(32))
	// hellos = h.sha256(b"the dialler's" + b"the listener's").digest()
	// hmac.new(key, b"plugwire/1 dialler" + hellos + b"\xbb" * 32, "sha256").hexdigest()
	for _, row := range []struct {
		role    string
		binding []byte
		want    string
	}{
		{roleDialler, binding, "918e9c0fc5c1b54933a1191a3819f06276945c4fcb729068dc2901e20ba12d57"},
		{roleListener, nil, "3ca1cfc4b90f5e3f90878b2f866f355418e154098834407578feb1815bd2e2ee"},
	} {
		if got := hex.EncodeToString(key.proof(row.role, hellos, row.binding)); got != row.want {
			t.Errorf("%s: %s", row.role, got)
		}
	}
}

func TestT07WrongProcessIsRefused(t *testing.T) {
	key := newSecret()
	t.Run("both know the secret", func(t *testing.T) {
		for _, network := range []string{"unix", "tcp", "pipe"} {
			x, y := pair(t, network, withSecret(key), withSecret(key))
			if _, err := x.Ping(context.Background()); err != nil {
				t.Error(err)
			}
			closeBoth(x, y)
		}
	})
	for name, side := range map[string]struct {
		dialler, listener *secret
		code              Code
		dials, serves     string
	}{
		"the dialler has another":  {newSecret(), key, Unauthenticated, "does not know the one-time secret", "does not know the one-time secret"},
		"the dialler has none":     {nil, key, FailedPrecondition, `requires feature "proof"`, `requires feature "proof"`},
		"the listener has none":    {key, nil, FailedPrecondition, `requires feature "proof"`, `requires feature "proof"`},
		"the listener has another": {key, newSecret(), Unauthenticated, "does not know the one-time secret", "does not know the one-time secret"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, network := range []string{"unix", "pipe"} {
				dialled, accepted := bothErrors(t, network, withSecret(side.dialler), withSecret(side.listener))
				names(t, "dialler", dialled, side.code, side.dials)
				names(t, "listener", accepted, side.code, side.serves)
			}
		})
	}
	for name, row := range map[string]struct {
		send func(theirs, right []byte) []byte
		want string
	}{
		"the listener's own PROOF":      {func(theirs, _ []byte) []byte { return appendProof(nil, theirs) }, "does not know the one-time secret"},
		"a PROOF of zeros":              {func(_, _ []byte) []byte { return appendProof(nil, make([]byte, proofLen)) }, "does not know"},
		"a short PROOF":                 {func(_, right []byte) []byte { return frame(FrameProof, 0, 0, 0, right[:31]) }, "does not know"},
		"an empty PROOF":                {func(_, _ []byte) []byte { return frame(FrameProof, 0, 0, 0) }, "does not know"},
		"a call in its place":           {func(_, _ []byte) []byte { return callFrame(1, "echo") }, "CALL instead of PROOF"},
		"a call before it":              {func(_, right []byte) []byte { return cat(callFrame(1, "echo"), appendProof(nil, right)) }, "CALL instead of PROOF"},
		"another HELLO":                 {func(_, _ []byte) []byte { return helloBytes(adversaryHello())[4:] }, "HELLO instead of PROOF"},
		"a frame that may be skipped":   {func(_, _ []byte) []byte { return frame(0x80, 0, 0, 0) }, "instead of PROOF"},
		"a PROOF with a length of 2^32": {func(_, _ []byte) []byte { return claim(1<<32-1, FrameProof, 0, 0, 0) }, "PROOF of 4294967295 bytes"},
	} {
		t.Run("the dialler sends "+name, func(t *testing.T) {
			x, theirs, right := meetStrangerWith(t, key)
			x.Write(row.send(theirs, right))
			said, err := x.outcome(t)
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("the listener says %v, want %q", err, row.want)
			}
			if reason := refusal(append([]byte(wireMagic), said...)); !strings.Contains(reason, row.want) {
				t.Errorf("the dialler is told %q (%q), want %q", reason, said, row.want)
			}
		})
	}
	t.Run("and the right one is let in", func(t *testing.T) {
		x, _, right := meetStrangerWith(t, key)
		x.Write(appendProof(nil, right))
		if err := <-x.served; err != nil {
			t.Error(err)
		}
	})
}

// A flipper forwards what both ends of a connection say, with one bit changed.
type flipper struct {
	bit      int  // which
	ofServer bool // of what the listener says
}

// between connects a dialler and a listener through f, and returns their ends.
func (f *flipper) between(t *testing.T, wg *sync.WaitGroup) (dialled, accepted net.Conn) {
	dialled, a := socketPair(t, "unix")
	b, accepted := socketPair(t, "unix")
	forward := func(dst, src net.Conn, bit int) {
		defer closeWrite(dst)
		buf := make([]byte, 4096)
		for at := 0; ; {
			n, err := src.Read(buf)
			if i := bit/8 - at; bit >= 0 && i >= 0 && i < n {
				buf[i] ^= 1 << (bit % 8)
			}
			at += n
			if n > 0 {
				if _, werr := dst.Write(buf[:n]); werr != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	}
	up, down := f.bit, -1
	if f.ofServer {
		up, down = -1, f.bit
	}
	wg.Go(func() { forward(b, a, up) })
	wg.Go(func() { forward(a, b, down) })
	return dialled, accepted
}

// opens reports whether both sides take the connection through f for good, and
// can use it.
func (f *flipper) opens(t *testing.T, cfg func(dialler bool) *Config) bool {
	var wg sync.WaitGroup
	defer wg.Wait()
	dialled, accepted := f.between(t, &wg)
	served := make(chan bool, 1)
	go func() {
		c, err := open(context.Background(), accepted, false, "", cfg(false))
		if err == nil {
			<-c.Done()
			err = c.Err()
		}
		served <- err == nil || strings.Contains(err.Error(), io.EOF.Error())
		accepted.Close()
	}()
	c, err := open(context.Background(), dialled, true, "", cfg(true))
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_, err = c.Ping(ctx)
		cancel()
		c.Close()
	}
	dialled.Close()
	return <-served && err == nil
}

// flipAll flips each bit, or one of every so many, of the first n bytes that each
// side sends, and returns those that neither side minds.
func flipAll(t *testing.T, n, every int, cfg func(dialler bool) *Config) (accepted []string) {
	if f := (flipper{bit: -1}); !f.opens(t, cfg) {
		t.Fatal("does not connect when nothing is changed")
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for part := range 64 {
		wg.Go(func() {
			for i := part; i < 2*8*n/every; i += 64 {
				f := flipper{bit: i / 2 * every, ofServer: i%2 == 1}
				if f.opens(t, cfg) {
					mu.Lock()
					accepted = append(accepted, fmt.Sprintf("byte %d bit %d, of the listener: %v", f.bit/8, f.bit%8, f.ofServer))
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return accepted
}

func TestT25FlippedBitsOfAHandshakeWithASecret(t *testing.T) {
	key := newSecret()
	cfg := func(bool) *Config {
		c := withSecret(key)
		c.HandshakeTimeout = 300 * time.Millisecond
		c.CloseTimeout = 300 * time.Millisecond
		c.Versions = []int{1, 2, 3}
		return c.withDefaults()
	}
	opening := len(wireMagic) + frameHeaderLen + len(appendHello(nil, cfg(true).hello()))
	accepted := flipAll(t, opening+frameHeaderLen+proofLen, 1, cfg)
	// What a PROOF's header says beside type, flags and length means nothing.
	var wrong []string
	for _, a := range accepted {
		var at, bit int
		fmt.Sscanf(a, "byte %d bit %d", &at, &bit)
		if at < opening+6 || at >= opening+frameHeaderLen {
			wrong = append(wrong, a)
		}
	}
	if len(wrong) > 0 || len(accepted) > 2*8*6 {
		t.Errorf("neither side minds %d changes: %q", len(wrong), wrong)
	}
	t.Logf("%d bits flipped, %d of them mean nothing", 2*8*(opening+frameHeaderLen+proofLen), len(accepted))
}
