package grpcstub

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/plugwire/plugwire"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(benchServerEnv); dir != "" {
		if err := benchServer(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	if code == 0 {
		if leak := leaks(); leak != "" {
			fmt.Fprintf(os.Stderr, "leaked goroutines:\n\n%s", leak)
			code = 1
		}
	}
	os.Exit(code)
}

// leaks waits for the goroutines that tests left behind to end, and describes
// those that do not.
func leaks() (report string) {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		buf := make([]byte, 4<<20)
		buf = buf[:runtime.Stack(buf, true)]
		report = ""
		for g := range strings.SplitSeq(string(buf), "\n\n") {
			if (strings.Contains(g, "plugwire/plugwire") || strings.Contains(g, "google.golang.org/grpc")) && !strings.Contains(g, ".TestMain") {
				report += g + "\n\n"
			}
		}
		if report == "" || time.Now().After(deadline) {
			return report
		}
	}
}

// setup is what a test wants to have served and intercepted.
type setup struct {
	register          func(grpc.ServiceRegistrar)
	unaryServer       []grpc.UnaryServerInterceptor
	streamServer      []grpc.StreamServerInterceptor
	unaryClient       []grpc.UnaryClientInterceptor
	streamClient      []grpc.StreamClientInterceptor
	plugwire          func(*plugwire.Mux) // what the stub's Mux serves besides
	clientCfg, srvCfg *plugwire.Config
}

// A backend serves and dials what a setup says, over a Unix socket.
type backend struct {
	name  string
	start func(testing.TB, *setup) grpc.ClientConnInterface
}

// backends are the stub, and grpc-go itself: what is asked of the one must hold
// for the other.
var backends = []backend{
	{"stub", func(t testing.TB, s *setup) grpc.ClientConnInterface { cc, _ := startStub(t, s); return cc }},
	{"grpc-go", startGRPC},
}

// bothWays runs a test over each backend.
func bothWays(t *testing.T, test func(t *testing.T, b backend)) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) { test(t, b) })
	}
}

// socketPath returns a name for a socket, in a private directory.
func socketPath(t testing.TB) string {
	dir, err := os.MkdirTemp("", "gs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func startStub(t testing.TB, s *setup) (*Client, *plugwire.Conn) {
	mux := plugwire.NewMux()
	if s.plugwire != nil {
		s.plugwire(mux)
	}
	if s.register != nil {
		s.register(NewServer(mux, &ServerOptions{UnaryInterceptors: s.unaryServer, StreamInterceptors: s.streamServer}))
	}
	server := &plugwire.Server{Mux: mux, Config: s.srvCfg}
	addr := "unix://" + socketPath(t)
	l, err := server.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		if err := <-ended; !errors.Is(err, plugwire.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	conn, err := plugwire.Dial(context.Background(), addr, s.clientCfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return NewClient(conn, &ClientOptions{UnaryInterceptors: s.unaryClient, StreamInterceptors: s.streamClient}), conn
}

func startGRPC(t testing.TB, s *setup) grpc.ClientConnInterface {
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(s.unaryServer...), grpc.ChainStreamInterceptor(s.streamServer...))
	s.register(server)
	path := socketPath(t)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(l)
	t.Cleanup(server.Stop)
	cc, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithChainUnaryInterceptor(s.unaryClient...), grpc.WithChainStreamInterceptor(s.streamClient...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

// within returns a context for a test that must not hang.
func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}
