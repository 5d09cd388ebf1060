package plugwiretest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/plugwire/plugwire/plugwiretest"
)

type faults = plugwiretest.Faults

// faultyPair returns the two ends of a connection, the first with faults.
func faultyPair(t *testing.T, f faults) (*plugwiretest.FaultyConn, net.Conn) {
	watchdog(t)
	near, far := plugwiretest.NetPair(t)
	faulty := plugwiretest.Faulty(near, f)
	t.Cleanup(func() { faulty.Close() })
	return faulty, far
}

// carry sends b from one end to the other, as io.Writer has it, and returns what
// arrived.
func carry(t *testing.T, from, to net.Conn, b []byte) []byte {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		var err error
		for rest := b; len(rest) > 0 && err == nil; {
			var n int
			n, err = from.Write(rest)
			rest = rest[n:]
		}
		sent <- err
	}()
	got := make([]byte, len(b))
	if _, err := io.ReadFull(to, got); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	return got
}

func TestFaultyCarriesWhatItIsGiven(t *testing.T) {
	want := bytes.Repeat([]byte("0123456789abcdef!"), 3000)
	for name, f := range map[string]faults{
		"nothing wrong":  {},
		"single bytes":   {MaxRead: 1, MaxWrite: 1},
		"short writes":   {ShortWrite: true},
		"short by seven": {ShortWrite: true, MaxWrite: 7},
		"slow":           {Latency: time.Millisecond, Bandwidth: 2 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			faulty, far := faultyPair(t, f)
			if got := carry(t, faulty, far, want); !bytes.Equal(got, want) {
				t.Error("written otherwise")
			}
			if got := carry(t, far, faulty, want); !bytes.Equal(got, want) {
				t.Error("read otherwise")
			}
		})
	}
}

func TestFaultyPieces(t *testing.T) {
	faulty, far := faultyPair(t, faults{MaxRead: 3, MaxWrite: 5, ShortWrite: true})
	if n, err := faulty.Write(make([]byte, 100)); n != 5 || err != nil {
		t.Errorf("Write: %d, %v", n, err)
	}
	far.Write(make([]byte, 100))
	if n, err := faulty.Read(make([]byte, 100)); n != 3 || err != nil {
		t.Errorf("Read: %d, %v", n, err)
	}
}

func TestFaultyTakesItsTime(t *testing.T) {
	faulty, far := faultyPair(t, faults{Latency: 30 * time.Millisecond})
	start := time.Now()
	carry(t, far, faulty, []byte("x"))
	if took := time.Since(start); took < 30*time.Millisecond {
		t.Errorf("latency of 30ms took %v", took)
	}
	faulty, far = faultyPair(t, faults{Bandwidth: 1 << 20})
	start = time.Now()
	carry(t, faulty, far, make([]byte, 64<<10))
	if took := time.Since(start); took < 50*time.Millisecond { // 62, of which the last piece does not wait
		t.Errorf("64 KiB at 1 MiB/s took %v", took)
	}
}

func TestFaultyEnds(t *testing.T) {
	t.Run("at the limit", func(t *testing.T) {
		faulty, far := faultyPair(t, faults{Limit: 10})
		n, err := faulty.Write(make([]byte, 100))
		if n != 10 || !errors.Is(err, plugwiretest.ErrReset) {
			t.Errorf("Write: %d, %v", n, err)
		}
		got, _ := io.ReadAll(far)
		if len(got) != 10 {
			t.Errorf("%d bytes arrived", len(got))
		}
		if _, err := faulty.Read(make([]byte, 1)); !errors.Is(err, plugwiretest.ErrReset) {
			t.Errorf("Read: %v", err)
		}
	})
	t.Run("by something else at the limit", func(t *testing.T) {
		called := 0
		faulty, far := faultyPair(t, faults{Limit: 10, AtLimit: func(*plugwiretest.FaultyConn) { called++ }})
		carry(t, faulty, far, make([]byte, 4))
		carry(t, far, faulty, make([]byte, 100))
		if called != 1 {
			t.Errorf("called %d times", called)
		}
	})
	t.Run("slowly", func(t *testing.T) {
		faulty, far := faultyPair(t, faults{SlowClose: 200 * time.Millisecond})
		read := make(chan error, 1)
		go func() { _, err := faulty.Read(make([]byte, 1)); read <- err }()
		start := time.Now()
		go faulty.Close()
		if err := <-read; !errors.Is(err, net.ErrClosed) || time.Since(start) > 190*time.Millisecond {
			t.Errorf("Read returned %v after %v", err, time.Since(start))
		}
		far.Read(make([]byte, 1))
		if took := time.Since(start); took < 200*time.Millisecond {
			t.Errorf("the other side saw the end after %v", took)
		}
	})
}

func TestFaultyStalls(t *testing.T) {
	faulty, far := faultyPair(t, faults{})
	faulty.Stall()
	far.Write([]byte("x"))
	for name, op := range map[string]func([]byte) (int, error){"Read": faulty.Read, "Write": faulty.Write} {
		faulty.SetDeadline(time.Now().Add(10 * time.Millisecond))
		if n, err := op(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	faulty.SetDeadline(time.Time{})
	read := make(chan string)
	go func() {
		b := make([]byte, 10)
		n, err := faulty.Read(b)
		if err != nil {
			t.Error(err)
		}
		read <- string(b[:n])
	}()
	runtime.Gosched()
	faulty.Resume()
	if got := <-read; got != "x" {
		t.Errorf("read %q", got)
	}
	faulty.Stall()
	go func() {
		_, err := faulty.Read(make([]byte, 1))
		read <- err.Error()
	}()
	runtime.Gosched()
	faulty.Close()
	<-read
}

func TestRelay(t *testing.T) {
	watchdog(t)
	a, a2 := plugwiretest.NetPair(t)
	b2, b := plugwiretest.NetPair(t)
	plugwiretest.Relay(t, plugwiretest.Faulty(a2, faults{MaxRead: 7}), b2)
	want := bytes.Repeat([]byte("relay"), 10000)
	if got := carry(t, a, b, want); !bytes.Equal(got, want) {
		t.Error("arrived otherwise")
	}
	if half, ok := a.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
		if _, err := b.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("after CloseWrite at the other end: %v", err)
		}
		if got := carry(t, b, a, want); !bytes.Equal(got, want) {
			t.Error("the other direction is over too")
		}
	}
	b.Close()
	if _, err := io.ReadAll(a); err != nil {
		t.Error(err)
	}
}

func TestPluginInProcess(t *testing.T) {
	watchdog(t)
	ctx := context.Background()
	p := plugwiretest.Plugin(t, greeterMux(), nil)
	if got, err := greetAll(ctx, p, "you"); err != nil || got[0] != "hello, you" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := greetAll(ctx, p.Conn(), "you"); err != nil || got[0] != "hello, you" {
		t.Errorf("over Conn: %q, %v", got, err)
	}
	if err := p.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("Close after that: %v", err)
	}
	p = plugwiretest.Plugin(t, greeterMux(), nil)
	p.Kill()
	if err := p.Wait(); err == nil {
		t.Error("killed, and Wait says nothing")
	}
}
