package grpcstub

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plugwire/plugwire"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/examples/helloworld/helloworld"
)

// greeter is the server of grpc-go's hello world example.
type greeter struct {
	helloworld.UnimplementedGreeterServer
}

func (greeter) SayHello(_ context.Context, in *helloworld.HelloRequest) (*helloworld.HelloReply, error) {
	return &helloworld.HelloReply{Message: "Hello " + in.GetName()}, nil
}

const benchServerEnv = "GRPCSTUB_BENCH_SERVER"

// benchServer serves the greeter in a process of its own, by plugwire and by
// grpc-go, on two sockets in dir, until stdin ends.
func benchServer(dir string) error {
	mux := plugwire.NewMux()
	helloworld.RegisterGreeterServer(NewServer(mux, nil), greeter{})
	ours := &plugwire.Server{Mux: mux}
	l, err := ours.Listen("unix://" + filepath.Join(dir, "plugwire"))
	if err != nil {
		return err
	}
	theirs := grpc.NewServer()
	helloworld.RegisterGreeterServer(theirs, greeter{})
	gl, err := net.Listen("unix", filepath.Join(dir, "grpc"))
	if err != nil {
		return err
	}
	go ours.Serve(l)
	go theirs.Serve(gl)
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	ours.Close()
	theirs.Stop()
	return nil
}

// startBenchServer starts benchServer and returns clients of both kinds.
func startBenchServer(b *testing.B) (ours, theirs helloworld.GreeterClient) {
	dir := filepath.Dir(socketPath(b))
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), benchServerEnv+"="+dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		b.Fatalf("the server said %q: %v", line, err)
	}
	conn, err := plugwire.Dial(context.Background(), "unix://"+filepath.Join(dir, "plugwire"), nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	cc, err := grpc.NewClient("unix://"+filepath.Join(dir, "grpc"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cc.Close() })
	return helloworld.NewGreeterClient(NewClient(conn, nil)), helloworld.NewGreeterClient(cc)
}

// BenchmarkSayHello64 makes calls of grpc-go's hello world from 64 goroutines on
// one connection to another process, by the stub and by grpc-go in turn, and
// reports how many times as many the stub makes.
func BenchmarkSayHello64(b *testing.B) { benchmarkSayHello(b, 64) }

// BenchmarkSayHello1 is the same with a single caller.
func BenchmarkSayHello1(b *testing.B) { benchmarkSayHello(b, 1) }

func benchmarkSayHello(b *testing.B, callers int) {
	ours, theirs := startBenchServer(b)
	const rounds = 8 // so that what else the machine does hits both alike
	var took [2]time.Duration
	for i, client := range []helloworld.GreeterClient{ours, theirs} { // connect, and warm up
		sayHellos(b, client, callers, 64*callers)
		took[i] = 0
	}
	n := max(b.N/rounds, callers)
	b.ResetTimer()
	for round := range 2 * rounds {
		who := (round ^ round>>1) & 1 // ours, theirs, theirs, ours
		took[who] += sayHellos(b, []helloworld.GreeterClient{ours, theirs}[who], callers, n)
	}
	b.StopTimer()
	calls := float64(n * rounds)
	b.ReportMetric(calls/took[0].Seconds(), "calls/s")
	b.ReportMetric(calls/took[1].Seconds(), "grpc-go-calls/s")
	b.ReportMetric(took[1].Seconds()/took[0].Seconds(), "x-grpc-go")
}

// sayHellos makes n calls from as many goroutines as callers says, and returns
// how long that took.
func sayHellos(b *testing.B, client helloworld.GreeterClient, callers, n int) time.Duration {
	var (
		wg   sync.WaitGroup
		left atomic.Int64
	)
	left.Store(int64(n))
	begin := time.Now()
	for range callers {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				reply, err := client.SayHello(context.Background(), &helloworld.HelloRequest{Name: "world"})
				if err != nil || reply.GetMessage() != "Hello world" {
					b.Errorf("SayHello: %v, %v", reply, err)
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(begin)
}
