package plugwire

import (
	"io"
	"os"
	"testing"
	"time"
)

// patient is a file whose reads cannot be interrupted, as pipes of Windows are.
type patient struct{ *os.File }

func (patient) SetReadDeadline(time.Time) error { return os.ErrNoDeadline }

// A stdin that cannot be interrupted is read all the same, can be waited for with
// a deadline, and is at its end when it is.
func TestStdinWithoutDeadlines(t *testing.T) {
	watchdog(t)
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c := newStdioConn(patient{in}, out)
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); n != 0 || !isTimeout(err) {
		t.Fatalf("%d bytes, %v, before anything was written", n, err)
	}
	c.SetReadDeadline(time.Now().Add(adversaryPatience))
	go func() {
		w.Write([]byte("some"))
		w.Write([]byte("thing"))
		w.Close()
	}()
	if b, err := io.ReadAll(c); string(b) != "something" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}
