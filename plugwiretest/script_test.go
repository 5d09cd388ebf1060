package plugwiretest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/plugwire/plugwire"
	"github.com/plugwire/plugwire/plugwiretest"
)

func TestScriptAnswersACall(t *testing.T) {
	watchdog(t)
	c := plugwiretest.Scripted(t, nil, func(s *plugwiretest.Script) {
		call, _ := s.Expect(plugwire.FrameCall)
		s.Send(plugwire.FrameHeader{Type: plugwire.FrameReply, Flags: plugwire.FlagBack, ID: call.ID}, []byte("yes"))
		s.Expect(plugwire.FrameCall)
		s.Expect(plugwire.FrameCancel)
		s.SendBytes([]byte{1, 2, 3}) // part of a frame
		s.Close()
	})
	if reply, err := c.Call(context.Background(), "ask", nil); err != nil || string(reply) != "yes" {
		t.Errorf("%q, %v", reply, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Call(ctx, "ask", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a call without an answer: %v", err)
	}
	<-c.Done()
	if err := c.Err(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Err: %v", err)
	}
}

// A Script dials as well as it accepts, and over connections without buffers.
func TestScriptDialsAServer(t *testing.T) {
	watchdog(t)
	near, far := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- (&plugwire.Server{Mux: greeterMux()}).ServeConn(context.Background(), far) }()
	s := plugwiretest.NewScript(t, near)
	s.Greet()
	_, methods := s.Expect(plugwire.FrameMethods)
	if !strings.HasSuffix(string(methods), "greet") {
		t.Errorf("METHODS: %q", methods)
	}
	s.Send(plugwire.FrameHeader{Type: plugwire.FrameCall, Code: 1, ID: 1}, []byte("you"))
	if _, reply := s.Expect(plugwire.FrameReply, plugwire.FrameError); string(reply) != "hello, you" {
		t.Errorf("reply: %q", reply)
	}
	s.Send(plugwire.FrameHeader{Type: plugwire.FrameCall, Code: 99, ID: 2}, nil)
	if reason := s.ExpectEnd(); !strings.Contains(reason, "method number 99") {
		t.Errorf("reason: %q", reason)
	}
	if err := <-served; err != nil {
		t.Errorf("ServeConn: %v", err)
	}
}

// noteT takes the failures that a test expects.
type noteT struct {
	testing.TB
	errors []string
}

func (n *noteT) Errorf(format string, args ...any) {
	n.errors = append(n.errors, fmt.Sprintf(format, args...))
}

func TestScriptSaysWhatWentOtherwise(t *testing.T) {
	watchdog(t)
	near, far := net.Pipe()
	note := &noteT{TB: t}
	s := plugwiretest.NewScript(note, near)
	go func() {
		w := plugwire.NewFrameWriter(far)
		w.WriteFrame(plugwire.FrameHeader{Type: plugwire.FrameCredit}, nil)
		w.WriteFrame(plugwire.FrameHeader{Type: plugwire.FrameCall, ID: 1}, nil)
		w.Flush()
	}()
	s.Expect(plugwire.FrameReply, plugwire.FrameError)
	s.Send(plugwire.FrameHeader{Type: plugwire.FrameCall}, nil) // nobody reads: it would fail, too
	s.ExpectEnd()
	want := "plugwiretest: script: waiting for REPLY or ERROR: it was CALL"
	if len(note.errors) != 1 || note.errors[0] != want || s.OK() {
		t.Errorf("failures %q, want %q alone", note.errors, want)
	}
}

func TestPairFailsWithTheHandshake(t *testing.T) {
	watchdog(t)
	near, far := plugwiretest.NetPair(t)
	note := &fatalT{TB: t}
	func() {
		defer func() { recover() }()
		plugwiretest.PairOver(note, near, far, &plugwire.Config{Versions: []int{1}}, &plugwire.Config{Versions: []int{2}})
	}()
	if !strings.Contains(note.text, "no common application version") {
		t.Errorf("failed with %q", note.text)
	}
}

// fatalT takes the failure that a test expects, as a panic.
type fatalT struct {
	testing.TB
	text string
}

func (f *fatalT) Fatalf(format string, args ...any) {
	f.text = fmt.Sprintf(format, args...)
	panic(f.text)
}
