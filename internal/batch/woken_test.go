//go:build unix

package batch

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// wokenSize is more than a socket takes at once.
const wokenSize = 1 << 20

// Who has waited to write and then computes, in a process that was idle and has one
// processor, keeps nobody else from running: its first write woke the scheduler's
// monitor (see internal/sockio).
func TestWhoWaitedToWriteAndComputes(t *testing.T) {
	const inChild = "PLUGWIRE_TEST_WOKEN"
	if os.Getenv(inChild) != "" {
		writeAndCompute()
		os.Exit(0)
	}
	t.Parallel()
	data, childData := socketPair(t)
	control, childControl := socketPair(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestWhoWaitedToWriteAndComputes$")
	cmd.Env = append(os.Environ(), inChild+"=1", "GOMAXPROCS=1")
	cmd.ExtraFiles = []*os.File{childData, childControl}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	childData.Close()
	childControl.Close()
	if _, err := io.ReadFull(control, make([]byte, 1)); err != nil {
		t.Error(err)
	}
	time.Sleep(300 * time.Millisecond) // its monitor falls asleep: if not, the test sees less
	if _, err := io.ReadFull(data, make([]byte, wokenSize)); err != nil {
		t.Error(err)
	}
	time.Sleep(20 * time.Millisecond) // it computes: it cannot say so without waking the monitor
	control.Write([]byte{0})
	if err := cmd.Wait(); err != nil || out.String() != "stopped" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func socketPair(t *testing.T) (mine net.Conn, theirs *os.File) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "mine")
	defer f.Close()
	theirs = os.NewFile(uintptr(fds[1]), "theirs")
	t.Cleanup(func() { theirs.Close() })
	if mine, err = net.FileConn(f); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mine.Close() })
	return mine, theirs
}

func writeAndCompute() {
	var conns [2]net.Conn
	for i := range conns {
		c, err := net.FileConn(os.NewFile(uintptr(3+i), "parent's"))
		if err != nil {
			fmt.Print(err)
			return
		}
		conns[i] = c
	}
	data, control := conns[0], conns[1]
	var stop atomic.Bool
	go func() {
		control.Read(make([]byte, 1))
		stop.Store(true)
	}()
	w := New(data, Config{
		Control: func(b []byte) []byte { return b },
		Go:      func(w *Writer) { go w.Run() },
		Failed:  func(err error) { fmt.Print(err) },
		Timeout: time.Minute,
	})
	appendRecord(w, 0, wokenSize-len(record(0, 0, 0)))
	control.Write([]byte{0})
	w.FlushWaiting(context.Background())
	for start := time.Now(); !stop.Load(); {
		if time.Since(start) > 5*time.Second {
			fmt.Print("alone")
			return
		}
	}
	fmt.Print("stopped")
}
