package plugwire_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"

	"github.com/plugwire/plugwire"
)

// streamListener is a net.Listener that accepts the streams of a method.
type streamListener struct {
	conns  chan net.Conn
	closed context.Context
	close  context.CancelFunc
}

func newStreamListener(mux *plugwire.Mux, method string) *streamListener {
	l := &streamListener{conns: make(chan net.Conn)}
	l.closed, l.close = context.WithCancel(context.Background())
	mux.HandleStream(method, func(s *plugwire.Stream) error {
		select {
		case l.conns <- s.NetConn():
			<-s.Context().Done() // until the server closes it, or the client is gone
			return nil
		case <-l.closed.Done():
			return &plugwire.Error{Code: plugwire.Unavailable, Message: "nobody listens"}
		}
	})
	return l
}

func (l *streamListener) Accept() (net.Conn, error) {
	select {
	case nc := <-l.conns:
		return nc, nil
	case <-l.closed.Done():
		return nil, net.ErrClosed
	}
}

func (l *streamListener) Close() error   { l.close(); return nil }
func (l *streamListener) Addr() net.Addr { return &net.UnixAddr{Name: "tunnel", Net: "unix"} }

// HTTP through streams: any server that takes a net.Listener, and any client
// that takes a dialler, work as they are.
func ExampleStream_NetConn() {
	mux := plugwire.NewMux()
	tunnel := newStreamListener(mux, "http")
	addr, server := serve(mux)
	defer server.Close()
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello from %s", r.URL.Path)
	})}
	go web.Serve(tunnel)
	defer web.Close()

	conn, err := plugwire.Dial(context.Background(), addr, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			s, err := conn.OpenStream(context.WithoutCancel(ctx), "http") // ctx ends with the dialling
			if err != nil {
				return nil, err
			}
			return s.NetConn(), nil
		},
	}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://plugin/status")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	fmt.Println(resp.Status, string(body), err)
	// Output: 200 OK hello from /status <nil>
}
