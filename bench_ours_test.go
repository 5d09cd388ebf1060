package plugwire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/plugwire/plugwire/internal/batch"
)

// The rows of this package, as its users write them: default configuration, one
// connection.
var (
	oursUnaryRow   = row{name: "plugwire", service: "plugwire", connect: connectUnary, before: yieldFor(true)}
	oursNoYieldRow = row{name: "no yield", service: "plugwire", connect: connectUnary, before: yieldFor(false)}
	oursCallersRow = row{name: "callers", service: "plugwire", connect: connectUnary, shape: manyWorkers}
	oursDoAllRow   = row{name: "plugwire", service: "plugwire", connect: connectDoAll}
	oursOneWayRow  = row{name: "plugwire", service: "plugwire", connect: connectOneWay}
	oursStreamRow  = row{name: "plugwire", service: "plugwire", connect: connectStream}
	oursAloneRow   = row{name: "alone", service: "plugwire", connect: connectUnary}
	oursLargeRow   = row{name: "plugwire", service: "plugwire", connect: connectBeside("count", 64<<20)}
	oursSlowRow    = row{name: "plugwire", service: "plugwire", connect: connectBeside("sleep", 0)}
	oursConnectRow = row{name: "plugwire", service: "plugwire", connect: connectFirstCall}
)

// manyWorkers has a worker of its own for each message of a batch.
func manyWorkers(w *workload) { w.workers, w.batch = w.workers*w.batch, 1 }

func yieldFor(yield bool) func() { return func() { batch.NoYield = !yield } }

func init() {
	benchServices["plugwire"] = func(network string) (string, func(), error) { return serveOurs(network, nil) }
}

// serveOurs serves "echo", "count" and "tally", which reports what was counted.
func serveOurs(network string, cfg *Config) (string, func(), error) {
	var t tally // only ever used from one connection, whose one-way messages run in order
	mux := NewMux()
	mux.Handle("echo", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		return append(reply, r.Payload()...), nil
	}))
	mux.Handle("count", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		t.add(r.Payload())
		return reply, nil
	}))
	mux.Handle("tally", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		return appendTally(reply, &t), nil
	}))
	mux.Handle("sleep", HandlerFunc(func(_ *Request, reply []byte) ([]byte, error) {
		time.Sleep(50 * time.Millisecond)
		return reply, nil
	}))
	mux.HandleFunc("footprint", func(context.Context, []byte) ([]byte, error) { return json.Marshal(measureFootprint()) })
	var streamed tally // of one stream after the other
	mux.HandleStream("sink", func(s *Stream) error {
		var b []byte
		for {
			var err error
			if b, err = s.AppendRecv(b[:0]); err != nil {
				return s.Send(appendTally(nil, &streamed))
			}
			streamed.add(b)
		}
	})
	addr := map[string]string{"unix": localTransport + ":", "tcp": "tcp://127.0.0.1:0"}[network]
	server := &Server{Mux: mux, Config: cfg}
	l, err := server.Listen(addr)
	if err != nil {
		return "", nil, err
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := server.Serve(l); err != nil && !errors.Is(err, ErrServerClosed) {
			fmt.Fprintln(os.Stderr, "bench server:", err)
		}
	}()
	return addrURI(l.Addr()), func() { server.Close(); <-served }, nil
}

// dialOurs connects to a server process, which may have said more than its address.
func dialOurs(addr string) (*Conn, error) {
	addr, cfg := benchTarget(addr)
	return Dial(context.Background(), addr, cfg)
}

// connectUnary is the client whose workers make one call after the other.
func connectUnary(_, addr string, w workload) (*benchClient, error) {
	conn, err := dialOurs(addr)
	if err != nil {
		return nil, err
	}
	return &benchClient{
		worker: func(i int) func() error { return echoCaller(conn, i, w) },
		close:  conn.Close,
	}, nil
}

// echoCaller returns a function that makes one call and checks its answer.
func echoCaller(conn Caller, worker int, w workload) func() error {
	ctx := context.Background()
	seq := firstSeq(worker)
	call := &Call{Method: "echo", Request: make([]byte, w.size), Reply: make([]byte, 0, w.size)}
	return func() error {
		seq++
		stamp(call.Request, seq)
		call.Reply = call.Reply[:0]
		if err := conn.Do(ctx, call); err != nil {
			return err
		}
		return checkStamp(call.Reply, w.size, seq)
	}
}

// connectBeside is connectUnary beside one who calls another method, with that
// many bytes, again and again while a turn lasts.
func connectBeside(method string, size int) func(network, addr string, w workload) (*benchClient, error) {
	return func(network, addr string, w workload) (*benchClient, error) {
		conn, err := dialOurs(addr)
		if err != nil {
			return nil, err
		}
		var stop, begun chan struct{}
		ended := make(chan error, 1)
		beside := func() {
			request := make([]byte, size)
			for n := 0; ; n++ {
				if n == 4 { // the method is known by now
					close(begun)
				}
				if _, err := conn.Call(context.Background(), method, request); err != nil {
					ended <- err
					return
				}
				select {
				case <-stop:
					ended <- nil
					return
				default:
				}
			}
		}
		return &benchClient{
			worker: func(i int) func() error {
				if i == 0 {
					stop, begun = make(chan struct{}), make(chan struct{})
					go beside()
					<-begun
				}
				return echoCaller(conn, i, w)
			},
			settle: func() error { close(stop); return <-ended },
			close:  conn.Close,
		}, nil
	}
}

// connectDoAll is the client that makes w.batch calls at once.
func connectDoAll(_, addr string, w workload) (*benchClient, error) {
	conn, err := dialOurs(addr)
	if err != nil {
		return nil, err
	}
	worker := func(i int) func() error {
		ctx := context.Background()
		seq := firstSeq(i)
		calls := make([]*Call, w.batch)
		for i := range calls {
			calls[i] = &Call{Method: "echo", Request: make([]byte, w.size), Reply: make([]byte, 0, w.size)}
		}
		return func() error {
			first := seq + 1
			for _, c := range calls {
				seq++
				stamp(c.Request, seq)
				c.Reply = c.Reply[:0]
			}
			if err := conn.DoAll(ctx, calls); err != nil {
				return err
			}
			for i, c := range calls {
				if c.Err != nil {
					return c.Err
				}
				if err := checkStamp(c.Reply, w.size, first+uint64(i)); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return &benchClient{worker: worker, close: conn.Close}, nil
}

// connectOneWay is the client that sends one-way messages, and in the end asks how many were handled.
func connectOneWay(_, addr string, w workload) (*benchClient, error) {
	conn, err := dialOurs(addr)
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	sent := make([]tally, w.workers)
	worker := func(i int) func() error {
		seq := firstSeq(i)
		message := make([]byte, w.size)
		return func() error {
			for range w.batch {
				seq++
				stamp(message, seq)
				sent[i].add(message)
				if err := conn.Notify(ctx, "count", message); err != nil {
					return err
				}
			}
			return nil
		}
	}
	settle := func() error {
		if err := conn.Flush(ctx); err != nil {
			return err
		}
		call := Call{Method: "tally"}
		if err := conn.Do(ctx, &call); err != nil {
			return err
		}
		return checkTallies(sent, call.Reply)
	}
	return &benchClient{worker: worker, settle: settle, close: conn.Close}, nil
}

// connectStream is the client that sends messages on a stream, and in the end
// asks how many were received.
func connectStream(_, addr string, w workload) (*benchClient, error) {
	conn, err := dialOurs(addr)
	if err != nil {
		return nil, err
	}
	var s *Stream
	sent := make([]tally, 1)
	message := make([]byte, w.size)
	seq := firstSeq(0)
	worker := func(int) func() error {
		s, err = conn.OpenStream(context.Background(), "sink")
		return func() error {
			for range w.batch {
				seq++
				stamp(message, seq)
				sent[0].add(message)
				if err := s.Send(message); err != nil {
					return err
				}
			}
			return nil
		}
	}
	settle := func() error {
		if err := s.CloseSend(); err != nil {
			return err
		}
		answer, err := s.Recv()
		if err != nil {
			return err
		}
		return checkTallies(sent, answer)
	}
	return &benchClient{worker: worker, settle: settle, close: conn.Close}, nil
}

// connectFirstCall is the client that dials for each call.
func connectFirstCall(_, addr string, w workload) (*benchClient, error) {
	var conn *Conn
	return &benchClient{
		worker: func(i int) func() error {
			return func() (err error) {
				if conn, err = dialOurs(addr); err != nil {
					return err
				}
				return echoCaller(conn, i, w)()
			}
		},
		between: func() error { return conn.Close() },
		close:   func() error { return nil },
	}, nil
}
