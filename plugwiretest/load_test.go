package plugwiretest_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plugwire/plugwire"
	"github.com/plugwire/plugwire/plugwiretest"
)

// closeTimeout is the CloseTimeout of the sides of a connection.
const closeTimeout = 100 * time.Millisecond

// A side is one end of a connection that counts what it serves.
type side struct {
	mux  *plugwire.Mux
	conn *plugwire.Conn

	mu     sync.Mutex
	ran    map[uint64]int  // calls by id
	notRun map[uint64]bool // calls of which their callers were told so
	noted  []uint64        // one-way messages in the order of their handling
	wrong  error           // the first thing that arrived otherwise than it was sent
}

// message makes n bytes, at least 8, that checkMessage recognises.
func message(id uint64, n int) []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, max(n, 8)), id)
	for len(b) < min(n, 8+256) {
		b = append(b, byte(id+uint64(len(b))*7))
	}
	for len(b) < n { // it repeats itself
		b = append(b, b[8:8+min(len(b)/256*256, n-len(b))]...)
	}
	return b
}

func checkMessage(b []byte) (id uint64, err error) {
	if len(b) < 8 {
		return 0, fmt.Errorf("a message of %d bytes", len(b))
	}
	id = binary.LittleEndian.Uint64(b)
	if !bytes.Equal(b, message(id, len(b))) {
		err = fmt.Errorf("message %d of %d bytes was changed", id, len(b))
	}
	return id, err
}

func newSide() *side {
	s := &side{mux: plugwire.NewMux(), ran: make(map[uint64]int), notRun: make(map[uint64]bool)}
	s.mux.Handle("echo", plugwire.HandlerFunc(func(r *plugwire.Request, reply []byte) ([]byte, error) {
		s.count(r.Payload(), func(id uint64) { s.ran[id]++ })
		return append(reply, r.Payload()...), nil
	}))
	s.mux.Handle("note", plugwire.HandlerFunc(func(r *plugwire.Request, reply []byte) ([]byte, error) {
		s.count(r.Payload(), func(id uint64) { s.noted = append(s.noted, id) })
		return reply, nil
	}))
	s.mux.Handle("block", plugwire.HandlerFunc(func(r *plugwire.Request, reply []byte) ([]byte, error) {
		<-r.Context().Done()
		return reply, r.Context().Err()
	}))
	s.mux.HandleStream("echo stream", func(st *plugwire.Stream) error {
		for {
			msg, err := st.Recv()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if err := st.Send(msg); err != nil {
				return err
			}
		}
	})
	s.serveMeetings()
	return s
}

func (s *side) count(b []byte, f func(id uint64)) {
	id, err := checkMessage(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && s.wrong == nil {
		s.wrong = err
	}
	f(id)
}

// connect makes two sides of a connection over the net.Conns; tune changes both Configs.
func connect(t *testing.T, near, far net.Conn, tune func(*plugwire.Config)) (x, y *side) {
	t.Helper()
	x, y = newSide(), newSide()
	config := func(s *side) *plugwire.Config {
		c := &plugwire.Config{Mux: s.mux, CloseTimeout: closeTimeout, KeepAlive: -1}
		if tune != nil {
			tune(c)
		}
		return c
	}
	x.conn, y.conn = plugwiretest.PairOver(t, near, far, config(x), config(y))
	return x, y
}

// A load is what one side does to the other. Each operation has its own deadline.
type load struct {
	callers, calls  int // goroutines, and calls of each
	notes, messages int // one-way messages, and messages of one stream
	sizes           []int
	timeout         time.Duration // of each operation; 0: none

	lag  *lag
	fail func(error) // told of each error that is not the load's own
}

var loadIDs atomic.Uint64

// run has from make calls, notes and a stream to the other side, all at the same
// time, and returns when all have ended. Every result that is not an error must
// be right.
func (l *load) run(t *testing.T, from, to *side) {
	var wg sync.WaitGroup
	for range l.callers {
		wg.Go(func() {
			for i := range l.calls {
				l.call(t, from, to, l.sizes[i%len(l.sizes)])
			}
		})
	}
	if l.notes > 0 {
		wg.Go(func() { l.notify(t, from, to) })
	}
	if l.messages > 0 {
		wg.Go(func() { l.stream(t, from) })
	}
	wg.Wait()
}

// do runs one operation within the deadline, which must hold.
func (l *load) do(t *testing.T, what string, op func(ctx context.Context) error) error {
	ctx, cancel := context.Background(), context.CancelFunc(func() {})
	if l.timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, l.timeout)
	}
	defer cancel()
	err := op(ctx)
	if deadline, ok := ctx.Deadline(); ok {
		l.lag.check(t, what, time.Since(deadline))
	}
	if err != nil {
		l.fail(fmt.Errorf("%s: %w", what, err))
	}
	return err
}

func (l *load) call(t *testing.T, from, to *side, size int) {
	id := loadIDs.Add(1)
	req := message(id, size)
	call := plugwire.Call{Method: "echo", Request: req}
	err := l.do(t, "call", func(ctx context.Context) error { return from.conn.Do(ctx, &call) })
	if err == nil && !bytes.Equal(call.Reply, req) {
		t.Errorf("the reply to %d bytes is wrong, and has %d", len(req), len(call.Reply))
	}
	to.mu.Lock()
	defer to.mu.Unlock()
	if err == nil && to.ran[id] != 1 {
		t.Errorf("a call that has its reply ran %d times", to.ran[id])
	}
	if plugwire.NotRun(err) {
		to.notRun[id] = true
	}
}

func (l *load) notify(t *testing.T, from, to *side) {
	for i := range l.notes {
		if l.do(t, "one-way message", func(ctx context.Context) error {
			return from.conn.Notify(ctx, "note", message(uint64(i), l.sizes[i%len(l.sizes)]))
		}) != nil {
			return
		}
	}
	if l.do(t, "flush", from.conn.Flush) == nil {
		to.mu.Lock()
		defer to.mu.Unlock()
		if len(to.noted) != l.notes {
			t.Errorf("%d of %d one-way messages handled after Flush", len(to.noted), l.notes)
		}
	}
}

func (l *load) stream(t *testing.T, from *side) {
	l.do(t, "stream", func(ctx context.Context) error {
		s, err := from.conn.OpenStream(ctx, "echo stream")
		if err != nil {
			return err
		}
		defer s.Close()
		var sending sync.WaitGroup
		defer sending.Wait()
		sending.Go(func() {
			for i := range l.messages {
				if err := s.Send(message(uint64(i), l.sizes[i%len(l.sizes)])); err != nil {
					return // Recv says why
				}
			}
			s.CloseSend()
		})
		for i := range l.messages {
			b, err := s.Recv()
			if err != nil {
				return err
			}
			if id, err := checkMessage(b); err != nil || id != uint64(i) {
				t.Errorf("message %d of the stream is number %d: %v", i, id, err)
			}
		}
		if _, err := s.Recv(); err != io.EOF {
			return fmt.Errorf("behind the last message: %w", err)
		}
		return nil
	})
}

// settled checks, when everything has ended, what the side was made to do.
func (s *side) settled(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wrong != nil {
		t.Error(s.wrong)
	}
	for i, id := range s.noted {
		if id != uint64(i) {
			t.Errorf("one-way message %d was handled as number %d", id, i)
			break
		}
	}
	for id, n := range s.ran {
		if n > 1 || s.notRun[id] {
			t.Errorf("a call ran %d times, NotRun of its error was %v", n, s.notRun[id])
		}
	}
}

// A lag measures how late this process's own timers are, on a machine that others use too.
type lag struct {
	most  atomic.Int64 // that was seen
	since atomic.Int64 // when the timer that runs was set, Unix nanoseconds
}

// What a deadline may be late by, and how long lag's timer takes.
const (
	deadlineSlack = 50 * time.Millisecond
	lagStep       = 5 * time.Millisecond
)

func watchLag(t *testing.T) *lag {
	l := new(lag)
	l.since.Store(time.Now().UnixNano())
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(lagStep):
				l.look()
				l.since.Store(time.Now().UnixNano())
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped })
	return l
}

func (l *lag) look() time.Duration {
	late := time.Now().UnixNano() - l.since.Load() - int64(lagStep)
	for most := l.most.Load(); late > most && !l.most.CompareAndSwap(most, late); most = l.most.Load() {
	}
	return time.Duration(l.most.Load())
}

// check fails the test when something was later than it may be. Twice the lag
// counts: to end an operation takes more than one change of goroutines.
func (l *lag) check(t *testing.T, what string, late time.Duration) {
	if slack := deadlineSlack + 2*l.look(); late > slack {
		t.Errorf("%s ended %v after its time, %v at most", what, late, slack)
	}
}
