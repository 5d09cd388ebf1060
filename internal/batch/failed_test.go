package batch

import (
	"context"
	"encoding/binary"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// resuming drains the other end at the moment when a write has failed for its deadline.
type resuming struct {
	*net.UnixConn
	set    bool
	resume func()
}

func (r *resuming) SetWriteDeadline(t time.Time) error {
	if t.IsZero() && r.set {
		r.resume()
	}
	r.set = !t.IsZero()
	return r.UnixConn.SetWriteDeadline(t)
}

// The other end reads again just when a write has failed for its deadline, and other
// goroutines go on: nothing is written behind a batch of which a part is missing.
func TestNoBatchFollowsOneThatFailed(t *testing.T) {
	for try := range 15 {
		if followedAFailure(t) {
			t.Errorf("try %d: bytes of a later batch follow a batch that was cut off", try)
			return
		}
	}
}

func followedAFailure(t *testing.T) bool {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Skip(err)
	}
	defer l.Close()
	var nc [2]*net.UnixConn
	if nc[0], err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr)); err != nil {
		t.Fatal(err)
	}
	if nc[1], err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	defer nc[0].Close()
	defer nc[1].Close()
	var got []byte
	var once sync.Once
	drained := make(chan struct{})
	conn := &resuming{UnixConn: nc[0]}
	conn.resume = func() {
		once.Do(func() {
			go func() {
				defer close(drained)
				b := make([]byte, 1<<20)
				nc[1].SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				for {
					n, err := nc[1].Read(b)
					got = append(got, b[:n]...)
					if err != nil {
						return
					}
				}
			}()
			time.Sleep(200 * time.Microsecond)
		})
	}
	failed := make(chan struct{})
	w := New(conn, Config{
		Control: func(b []byte) []byte { return b },
		Go:      func(w *Writer) { go w.Run() },
		Failed:  func(error) { close(failed) },
		Timeout: 5 * time.Millisecond,
	})
	var next uint64
	appendMore := func(n int) {
		w.Lock()
		for range n {
			if w.Err() == nil && w.HasRoom(8) {
				w.Put(binary.LittleEndian.AppendUint64(w.Buffer(), next))
				next++
			}
		}
		w.Unlock()
	}
	appendMore(32 << 10)
	w.Flush()
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				appendMore(1)
				w.FlushWaiting(context.Background())
			}
		})
	}
	<-failed
	close(stop)
	wg.Wait()
	<-drained
	// whole numbers in order are all right; where one is missing, a batch was skipped
	for i := 0; i+8 <= len(got); i += 8 {
		if v := binary.LittleEndian.Uint64(got[i:]); v != uint64(i/8) {
			t.Logf("at number %d of %d comes %#x", i/8, len(got)/8, v)
			return true
		}
	}
	return false
}
