//go:build unix

package sockio

import (
	"bytes"
	"os"
	"runtime"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// socketPair returns two connected stream sockets, which are in blocking mode: an
// attempt that the scheduler is not told of does not wait for all that.
func socketPair(t *testing.T) (a, b int) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fds[0]); syscall.Close(fds[1]) })
	return fds[0], fds[1]
}

func setNonblock(t *testing.T, fds ...int) {
	t.Helper()
	for _, fd := range fds {
		if err := syscall.SetNonblock(fd, true); err != nil {
			t.Fatal(err)
		}
	}
}

// onBoth runs a test as who was woken, and as who was not.
func onBoth(t *testing.T, test func(t *testing.T, woken bool)) {
	t.Run("first", func(t *testing.T) { test(t, false) })
	t.Run("woken", func(t *testing.T) { test(t, true) })
}

func TestAttempts(t *testing.T) {
	onBoth(t, func(t *testing.T, woken bool) {
		x, y := socketPair(t)
		setNonblock(t, x, y)
		attempts(t, x, y, woken)
	})
}

func TestAttemptsOnPipes(t *testing.T) {
	onBoth(t, func(t *testing.T, woken bool) {
		var fds [2]int
		if err := syscall.Pipe(fds[:]); err != nil {
			t.Fatal(err)
		}
		r, w := fds[0], fds[1]
		defer syscall.Close(r)
		defer syscall.Close(w)
		setNonblock(t, r, w)
		attempts(t, w, r, woken)
	})
}

// attempts sends what fits from x to y and compares.
func attempts(t *testing.T, x, y int, woken bool) {
	buf := make([]byte, 100<<10)
	if n, again, err := Read(uintptr(y), buf, woken); n != 0 || !again || err != nil {
		t.Errorf("nothing there: %d, %v, %v", n, again, err)
	}
	var sent, got []byte
	for i := range 1000 { // a socket takes less
		b := bytes.Repeat([]byte{byte(i)}, 30<<10+i)
		n, err := Write(uintptr(x), b, woken)
		if err != nil {
			t.Fatal(err)
		}
		if sent = append(sent, b[:n]...); n == 0 {
			break
		}
	}
	if len(sent) < 4<<10 || len(sent) > 20<<20 {
		t.Errorf("%d bytes fit", len(sent))
	}
	for {
		n, again, err := Read(uintptr(y), buf, woken)
		if err != nil {
			t.Fatal(err)
		}
		if again {
			break
		}
		got = append(got, buf[:n]...)
	}
	if !bytes.Equal(sent, got) {
		t.Errorf("sent %d bytes, received %d others", len(sent), len(got))
	}
}

// What was not told of must not wait, for its thread would keep a processor.
func TestUntoldAttemptsDoNotWait(t *testing.T) {
	x, y := socketPair(t) // in blocking mode
	if !canUntold {
		t.Skip("the scheduler is told of every call here: not Linux, or a sanitizer")
	}
	if _, err := readUntold(uintptr(y), make([]byte, 1)); err != syscall.EAGAIN {
		t.Errorf("nothing there: %v", err)
	}
	full := error(nil)
	for range 10_000 {
		if _, full = writeUntold(uintptr(x), make([]byte, 64<<10)); full != nil {
			break
		}
	}
	if full != syscall.EAGAIN {
		t.Errorf("a full socket: %v", full)
	}
}

func TestEndsAndErrors(t *testing.T) {
	onBoth(t, func(t *testing.T, woken bool) {
		x, y := socketPair(t)
		setNonblock(t, x, y)
		if n, again, err := Read(uintptr(x), nil, woken); n != 0 || err != nil {
			t.Errorf("to nothing: %d, %v, %v", n, again, err)
		}
		if err := syscall.Shutdown(y, syscall.SHUT_WR); err != nil {
			t.Fatal(err)
		}
		if n, again, err := Read(uintptr(x), make([]byte, 8), woken); n != 0 || again || err != nil {
			t.Errorf("the end: %d, %v, %v", n, again, err)
		}
		if err := syscall.Shutdown(y, syscall.SHUT_RDWR); err != nil {
			t.Fatal(err)
		}
		if n, err := Write(uintptr(x), []byte("x"), woken); n != 0 || err != syscall.EPIPE {
			t.Errorf("nobody reads: %d, %v", n, err)
		}
		file, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if n, err := Write(file.Fd(), []byte("x"), woken); n != 0 || err != syscall.EBADF {
			t.Errorf("a descriptor for reading: %d, %v", n, err)
		}
	})
}

func TestTwo(t *testing.T) {
	if !TwoAvailable {
		t.Skip("not on " + runtime.GOOS)
	}
	x, y := socketPair(t)
	setNonblock(t, x, y)
	var two Two
	a, b := make([]byte, 3), make([]byte, 100)
	if n, again, err := two.Read(uintptr(y), a, b); n != 0 || !again || err != nil {
		t.Errorf("nothing there: %d, %v, %v", n, again, err)
	}
	if n, err := Write(uintptr(x), []byte("123456789"), false); n != 9 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	n, again, err := two.Read(uintptr(y), a, b)
	if n != 9 || again || err != nil || string(a)+string(b[:6]) != "123456789" {
		t.Errorf("%d, %v, %v: %q and %q", n, again, err, a, b[:6])
	}
	if two != (Two{}) {
		t.Error("it still points to the memory")
	}
	syscall.Shutdown(x, syscall.SHUT_WR)
	if n, again, err := two.Read(uintptr(y), a, b); n != 0 || again || err != nil {
		t.Errorf("the end: %d, %v, %v", n, again, err)
	}
	if n, again, err := two.Read(^uintptr(0), a, b); n != 0 || again || err != syscall.EBADF {
		t.Errorf("no descriptor: %d, %v, %v", n, again, err)
	}
}

// The timer is there while large calls are made, and no longer.
func TestFlow(t *testing.T) {
	var f flow
	for range 3 {
		for range 1000 {
			f.moved(flowSize - 1)
		}
		if f.going.Load() {
			t.Error("small calls have set the timer")
		}
		for start := time.Now(); time.Since(start) < 2*flowTick; {
			if f.moved(flowSize); !f.going.Load() {
				// The timer may have come between the two.
				if f.moved(flowSize); !f.going.Load() {
					t.Fatal("no timer while large calls are made")
				}
			}
		}
		for start := time.Now(); f.going.Load(); runtime.Gosched() {
			if time.Since(start) > 10*time.Second {
				t.Fatal("the timer is there long after the last large call")
			}
		}
	}
}

// waitForFlow waits until the process's timer is not there.
func waitForFlow(t *testing.T) {
	t.Helper()
	for start := time.Now(); process.going.Load(); time.Sleep(time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatal("the timer is there long after the last large call")
		}
	}
	process.mu.Lock() // what ran for it is done too
	defer process.mu.Unlock()
}

// A timer is needed where calls are untold, and only there.
func TestFlowIsTheProcess(t *testing.T) {
	x, _ := socketPair(t)
	setNonblock(t, x)
	waitForFlow(t)
	if n, err := Write(uintptr(x), make([]byte, flowSize), false); n != flowSize || err != nil {
		t.Fatal(n, err)
	}
	if process.going.Load() != canUntold {
		t.Errorf("the timer is there: %v, calls are untold: %v", !canUntold, canUntold)
	}
	waitForFlow(t)
}

// A timer that is set in a bubble of testing/synctest is the bubble's: it stops with
// the bubble's clock, and whoever sets it outside panics.
func TestFlowAndBubbles(t *testing.T) {
	inBubble := func() {
		synctest.Test(t, func(t *testing.T) {
			for range 3 {
				process.moved(flowSize)
				time.Sleep(time.Second)
			}
			process.moved(flowSize)
		})
	}
	outside := func() { process.moved(flowSize) }
	waitForFlow(t)
	process = flow{} // nobody has made the timer yet
	for range 2 {
		inBubble()
		waitForFlow(t)
		outside()
		inBubble()
		waitForFlow(t)
	}
}

// What large calls cost beside.
func TestFlowAllocatesNothing(t *testing.T) {
	var f flow
	f.moved(flowSize)
	if n := testing.AllocsPerRun(1000, func() { f.moved(flowSize) }); n > 0.1 {
		t.Errorf("%v allocations", n)
	}
}
