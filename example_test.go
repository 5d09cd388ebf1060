package plugwire_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/plugwire/plugwire"
)

// serve starts a server for an example and returns its address.
func serve(mux *plugwire.Mux) (addr string, server *plugwire.Server) {
	server = &plugwire.Server{Mux: mux}
	l, err := server.Listen("tcp:") // "unix:" where there are Unix sockets
	if err != nil {
		log.Fatal(err)
	}
	go server.Serve(l)
	return "tcp://" + l.Addr().String(), server
}

// A server and a client without any processes launched.
func ExampleDial() {
	mux := plugwire.NewMux()
	mux.HandleFunc("greet", func(ctx context.Context, name []byte) ([]byte, error) {
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
	reply, err := conn.Call(ctx, "greet", []byte("world"))
	fmt.Println(string(reply), err)
	_, err = conn.Call(ctx, "grete", []byte("world"))
	fmt.Println(plugwire.CodeOf(err), plugwire.NotRun(err))
	// Output:
	// hello, world <nil>
	// Unimplemented true
}

// Many calls at once, for one wake-up.
func ExampleConn_DoAll() {
	mux := plugwire.NewMux()
	mux.Handle("double", plugwire.HandlerFunc(func(r *plugwire.Request, reply []byte) ([]byte, error) {
		for _, c := range r.Payload() {
			reply = append(reply, c, c)
		}
		return reply, nil
	}))
	addr, server := serve(mux)
	defer server.Close()

	ctx := context.Background()
	conn, err := plugwire.Dial(ctx, addr, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	calls := []*plugwire.Call{{Method: "double", Request: []byte("ab")}, {Method: "double", Request: []byte("xyz")}}
	if err := conn.DoAll(ctx, calls); err != nil {
		log.Fatal(err)
	}
	for _, c := range calls {
		fmt.Println(string(c.Reply))
	}
	// Output:
	// aabb
	// xxyyzz
}

// One-way messages are handled in order; Flush waits until they have been.
func ExampleConn_Notify() {
	mux := plugwire.NewMux()
	mux.HandleFunc("log", func(ctx context.Context, line []byte) ([]byte, error) {
		fmt.Println(string(line))
		return nil, nil
	})
	addr, server := serve(mux)
	defer server.Close()

	ctx := context.Background()
	conn, err := plugwire.Dial(ctx, addr, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	for i := range 3 {
		if err := conn.Notify(ctx, "log", fmt.Appendf(nil, "line %d", i)); err != nil {
			log.Fatal(err)
		}
	}
	if err := conn.Flush(ctx); err != nil {
		log.Fatal(err)
	}
	// Output:
	// line 0
	// line 1
	// line 2
}

// Both ends are equal: a handler calls the side that called it.
func ExampleInfoFromContext() {
	mux := plugwire.NewMux()
	mux.HandleFunc("greet", func(ctx context.Context, _ []byte) ([]byte, error) {
		info, ok := plugwire.InfoFromContext(ctx)
		if !ok {
			return nil, errors.New("not called by a connection")
		}
		name, err := info.Conn.Call(ctx, "who", nil)
		return append([]byte("hello, "), name...), err
	})
	addr, server := serve(mux)
	defer server.Close()

	own := plugwire.NewMux()
	own.HandleFunc("who", func(context.Context, []byte) ([]byte, error) { return []byte("caller"), nil })
	ctx := context.Background()
	conn, err := plugwire.Dial(ctx, addr, &plugwire.Config{Mux: own})
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	reply, err := conn.Call(ctx, "greet", nil)
	fmt.Println(string(reply), err)
	// Output:
	// hello, caller <nil>
}

// A typed method, for both sides and without code generation.
func ExampleNewMethod() {
	type Person struct{ Name string }
	type Greeting struct{ Text string }
	greet := plugwire.NewMethod[Person, Greeting]("greet", plugwire.JSON) // usually a variable of a package that both sides import

	mux := plugwire.NewMux()
	greet.Handle(mux, func(ctx context.Context, p *Person) (*Greeting, error) {
		if p.Name == "" {
			return nil, &plugwire.Error{Code: plugwire.InvalidArgument, Message: "nobody to greet"}
		}
		return &Greeting{Text: "hello, " + p.Name}, nil
	})
	addr, server := serve(mux)
	defer server.Close()

	ctx := context.Background()
	conn, err := plugwire.Dial(ctx, addr, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	reply, err := greet.Call(ctx, conn, &Person{Name: "world"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(reply.Text)
	_, err = greet.Call(ctx, conn, &Person{})
	fmt.Println(err)
	// Output:
	// hello, world
	// plugwire: call greet: nobody to greet
}
