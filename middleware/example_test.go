package middleware_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"os"

	"github.com/plugwire/plugwire"
	"github.com/plugwire/plugwire/middleware"
)

// dial starts a server and connects to it.
func dial(mux *plugwire.Mux) (conn *plugwire.Conn, stop func()) {
	server := &plugwire.Server{Mux: mux}
	l, err := server.Listen("tcp:") // "unix:" where there are Unix sockets
	if err != nil {
		log.Fatal(err)
	}
	go server.Serve(l)
	conn, err = plugwire.Dial(context.Background(), "tcp://"+l.Addr().String(), nil)
	if err != nil {
		log.Fatal(err)
	}
	return conn, func() { conn.Close(); server.Close() }
}

// Two requests may come at once, and then one in ten seconds. What is refused is
// logged, because Logging is outside.
func Example() {
	mux := plugwire.NewMux()
	mux.HandleFunc("greet", func(_ context.Context, name []byte) ([]byte, error) {
		return append([]byte("hello, "), name...), nil
	})
	logger := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if a.Key == "time" || a.Key == "duration" || a.Key == "error" {
			return slog.Attr{} // different each time, or long
		}
		return a
	}}))
	mux.Use(middleware.Logging(logger, nil), middleware.RateLimit(0.1, 2), middleware.ConcurrencyLimit(64, 256))
	conn, stop := dial(mux)
	defer stop()

	for range 3 {
		_, err := conn.Call(context.Background(), "greet", []byte("world"))
		fmt.Println(plugwire.CodeOf(err), plugwire.NotRun(err))
	}
	// Output:
	// level=INFO msg="plugwire: call" method=greet peer.transport=tcp code=OK bytes_in=5 bytes_out=12
	// OK false
	// level=INFO msg="plugwire: call" method=greet peer.transport=tcp code=OK bytes_in=5 bytes_out=12
	// OK false
	// level=WARN msg="plugwire: call" method=greet peer.transport=tcp code=ResourceExhausted bytes_in=5 bytes_out=0
	// ResourceExhausted true
}

// A limit for one method is put around its handler.
func ExampleConcurrencyLimit() {
	mux := plugwire.NewMux()
	report := plugwire.HandlerFunc(func(r *plugwire.Request, reply []byte) ([]byte, error) {
		return append(reply, "all is well"...), nil
	})
	mux.Handle("report", middleware.ConcurrencyLimit(1, 0)(report))
	conn, stop := dial(mux)
	defer stop()

	reply, err := conn.Call(context.Background(), "report", nil)
	fmt.Println(string(reply), err)
	// Output: all is well <nil>
}
