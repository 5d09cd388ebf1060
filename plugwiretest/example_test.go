package plugwiretest_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/plugwire/plugwire"
	"github.com/plugwire/plugwire/plugwiretest"
)

// greeterMux is what the plugin under test serves.
func greeterMux() *plugwire.Mux {
	mux := plugwire.NewMux()
	mux.HandleFunc("greet", func(_ context.Context, name []byte) ([]byte, error) {
		return append([]byte("hello, "), name...), nil
	})
	return mux
}

// greetAll is code of the host, which takes a Caller: a *plugwire.Plugin when it is not tested.
func greetAll(ctx context.Context, p plugwire.Caller, names ...string) (greetings []string, err error) {
	for _, name := range names {
		greeting, err := p.Call(ctx, "greet", []byte(name))
		if err != nil {
			return nil, err
		}
		greetings = append(greetings, string(greeting))
	}
	return greetings, nil
}

// In a test, t is its *testing.T.
func Example() {
	t := new(exampleT)
	defer t.end()

	p := plugwiretest.Plugin(t, greeterMux(), nil)
	fmt.Println(greetAll(context.Background(), p, "a", "b"))

	p.Kill()
	_, err := greetAll(context.Background(), p, "c")
	fmt.Println(plugwire.CodeOf(err), plugwire.NotRun(err))
	// Output:
	// [hello, a hello, b] <nil>
	// Unavailable true
}

// A connection that dies when a thousand bytes have passed.
func ExampleFaulty() {
	t := new(exampleT)
	defer t.end()

	near, far := plugwiretest.NetPair(t)
	faulty := plugwiretest.Faulty(near, plugwiretest.Faults{Limit: 1000, MaxRead: 1})
	host, _ := plugwiretest.PairOver(t, faulty, far, nil, &plugwire.Config{Mux: greeterMux()})
	for {
		if _, err := greetAll(context.Background(), host, "you"); err != nil {
			fmt.Println(plugwire.CodeOf(err))
			break
		}
	}
	// Output: Unavailable
}

// A plugin that answers a call twice.
func ExampleScripted() {
	t := new(exampleT)
	defer t.end()

	host := plugwiretest.Scripted(t, nil, func(s *plugwiretest.Script) {
		call, _ := s.Expect(plugwire.FrameCall)
		reply := plugwire.FrameHeader{Type: plugwire.FrameReply, Flags: plugwire.FlagBack, ID: call.ID}
		s.Send(reply, []byte("hello"))
		s.Send(reply, []byte("hello"))
		fmt.Println(s.ExpectEnd())
	})
	fmt.Println(greetAll(context.Background(), host, "you"))
	<-host.Done()
	// Unordered output:
	// [hello] <nil>
	// plugwire: REPLY in slot 1, where nothing was asked
}

// exampleT stands for the *testing.T that an example does not have.
type exampleT struct {
	testing.TB
	cleanups []func()
}

func (t *exampleT) Helper()                           {}
func (t *exampleT) Logf(format string, args ...any)   {}
func (t *exampleT) Errorf(format string, args ...any) { fmt.Printf(format+"\n", args...) }
func (t *exampleT) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (t *exampleT) Cleanup(f func())                  { t.cleanups = append(t.cleanups, f) }

func (t *exampleT) end() {
	for _, f := range slices.Backward(t.cleanups) {
		f()
	}
}
