package batch

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// sink is a connection without SyscallConn whose Write is the test's.
type sink struct {
	net.Conn // nil: anything but the methods below panics
	write    func(b []byte) (int, error)
	mu       sync.Mutex
	deadline time.Time
}

func newSink(write func(b []byte) (int, error)) *sink {
	return &sink{write: write}
}

func (s *sink) Write(b []byte) (int, error) { return s.write(b) }
func (s *sink) Close() error                { return nil }
func (s *sink) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = t
	return nil
}

// expires returns when a Write that takes nothing must give up.
func (s *sink) expires() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deadline
}

func start(t *testing.T, conn net.Conn, cfg Config) *Writer {
	t.Helper()
	if cfg.Control == nil {
		cfg.Control = func(b []byte) []byte { return b }
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	cfg.Go = func(w *Writer) { go w.Run() }
	w := New(conn, cfg)
	t.Cleanup(func() { w.Fail(net.ErrClosed) })
	return w
}

// until waits until cond, asked under the lock, holds.
func until(t *testing.T, w *Writer, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		w.Lock()
		ok := cond()
		w.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("not in time")
		}
	}
}

// record is what the tests append: sender, number, length, filling.
func record(sender, number uint32, n int) []byte {
	b := binary.LittleEndian.AppendUint32(nil, sender)
	b = binary.LittleEndian.AppendUint32(b, number)
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	return append(b, bytes.Repeat([]byte{byte(sender ^ number)}, n)...)
}

// checkRecords fails the test unless r has, of each sender, the numbers 0 to n-1 in order.
func checkRecords(t *testing.T, r io.Reader, senders, n int) {
	t.Helper()
	next := make([]uint32, senders)
	var head [12]byte
	body := make([]byte, 4*High)
	for range senders * n {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			t.Errorf("reading: %v", err)
			return
		}
		sender, number := binary.LittleEndian.Uint32(head[:]), binary.LittleEndian.Uint32(head[4:])
		b := body[:binary.LittleEndian.Uint32(head[8:])]
		if _, err := io.ReadFull(r, b); err != nil {
			t.Errorf("reading: %v", err)
			return
		}
		if number != next[sender] {
			t.Errorf("sender %d: record %d came as number %d", sender, number, next[sender])
			return
		}
		next[sender]++
		if len(bytes.Trim(b, string([]byte{byte(sender ^ number)}))) > 0 {
			t.Errorf("sender %d: record %d was changed", sender, number)
			return
		}
	}
}

// ends are the kinds of connections that the Writer knows.
func ends(t *testing.T, body func(t *testing.T, a, b net.Conn)) {
	t.Run("unix", func(t *testing.T) {
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Skip(err)
		}
		defer l.Close()
		a, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		b, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		a.(*net.UnixConn).SetWriteBuffer(4096)
		defer a.Close()
		defer b.Close()
		body(t, a, b)
	})
	t.Run("pipe", func(t *testing.T) {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		body(t, a, b)
	})
}
