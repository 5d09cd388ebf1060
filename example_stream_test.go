package plugwire_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"time"

	"github.com/plugwire/plugwire"
)

// Server streaming: one request, many answers. The handler's return ends it.
func ExampleMux_HandleStream() {
	mux := plugwire.NewMux()
	mux.HandleStream("count", func(s *plugwire.Stream) error {
		word, err := s.Recv()
		if err != nil {
			return err
		}
		for i := range 3 {
			if err := s.Send(fmt.Appendf(nil, "%s %d", word, i)); err != nil {
				return err // the other side has lost interest
			}
		}
		return nil
	})
	addr, server := serve(mux)
	defer server.Close()

	ctx := context.Background()
	conn, err := plugwire.Dial(ctx, addr, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	s, err := conn.OpenStream(ctx, "count")
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close() // so that one may leave the loop early
	if err := s.Send([]byte("sheep")); err != nil {
		log.Fatal(err)
	}
	for {
		msg, err := s.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(string(msg))
	}
	// Output:
	// sheep 0
	// sheep 1
	// sheep 2
}

// Two-way chat: both sides send when they like, and each ends its own direction.
func ExampleConn_OpenStream() {
	mux := plugwire.NewMux()
	mux.HandleStream("chat", func(s *plugwire.Stream) error {
		for {
			msg, err := s.Recv()
			if err == io.EOF { // the other side has said all it has to
				return s.Send([]byte("bye"))
			}
			if err != nil {
				return err
			}
			if err := s.Send(append([]byte("you said "), msg...)); err != nil {
				return err
			}
		}
	})
	addr, server := serve(mux)
	defer server.Close()

	ctx := context.Background()
	conn, err := plugwire.Dial(ctx, addr, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	s, err := conn.OpenStream(ctx, "chat")
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	go func() { // sending and receiving go on at the same time
		for _, line := range []string{"hello", "how are you?"} {
			s.Send([]byte(line)) // if it fails, Recv says why
		}
		s.CloseSend()
	}()
	for {
		msg, err := s.Recv()
		if err != nil {
			fmt.Println(err)
			break
		}
		fmt.Println(string(msg))
	}
	// Output:
	// you said hello
	// you said how are you?
	// bye
	// EOF
}

// A deadline ends the call on both sides: here at once, there through the
// handler's context.
func ExampleConn_Call_deadline() {
	stopped := make(chan error, 1)
	mux := plugwire.NewMux()
	mux.HandleFunc("work", func(ctx context.Context, _ []byte) ([]byte, error) {
		<-ctx.Done() // much work
		stopped <- ctx.Err()
		return nil, ctx.Err()
	})
	addr, server := serve(mux)
	defer server.Close()

	conn, err := plugwire.Dial(context.Background(), addr, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err = conn.Call(ctx, "work", nil)
	fmt.Println(errors.Is(err, context.DeadlineExceeded), plugwire.CodeOf(err))
	fmt.Println("the handler stopped:", <-stopped != nil)
	// Output:
	// true DeadlineExceeded
	// the handler stopped: true
}

// Metadata travels beside a request and beside its reply.
func ExampleMetadata() {
	mux := plugwire.NewMux()
	mux.HandleFunc("greet", func(ctx context.Context, name []byte) ([]byte, error) {
		info, _ := plugwire.InfoFromContext(ctx)
		info.SetReplyMetadata(plugwire.Metadata{"served-by": "greeter-1"})
		if info.Metadata["language"] == "fr" {
			return append([]byte("bonjour, "), name...), nil
		}
		return append([]byte("hello, "), name...), nil
	})
	addr, server := serve(mux)
	defer server.Close()

	ctx := context.Background()
	conn, err := plugwire.Dial(ctx, addr, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	call := &plugwire.Call{
		Method:   "greet",
		Request:  []byte("world"),
		Metadata: plugwire.Metadata{"language": "fr"},
	}
	if err := conn.Do(ctx, call); err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(call.Reply), call.ReplyMetadata)
	// Output: bonjour, world map[served-by:greeter-1]
}
