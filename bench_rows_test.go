package plugwire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A workload is what several rows do alike, so that they can be compared.
type workload struct {
	name    string
	size    int  // payload bytes of a message
	workers int  // goroutines that work side by side
	batch   int  // messages in one operation of a worker
	oneWay  bool // messages are not answered
	bulk    bool // bytes matter more than messages
	latency bool // latency matters more than throughput
	turns   int  // in a session; 0: fewTurns
}

// A row does workloads in one way: ours, or by hand over the bare socket. Its
// server is always another process.
type row struct {
	name    string // ours, raw or rawmux
	service string // what the server process runs: a key of benchServices
	connect func(network, addr string, w workload) (*benchClient, error)
	shape   func(w *workload) // nil, or how it does the workload in another shape
	before  func()            // nil, or called before each of its turns
}

// A benchClient is a row's end of the connection to its server process.
type benchClient struct {
	worker  func(i int) func() error // worker i's operation: workload.batch messages, their answers checked
	between func() error             // nil, or what follows an operation, outside its latency
	settle  func() error             // nil, or returns once the server has handled everything; ends a turn
	close   func() error
}

// A result is what one turn of one row gave.
type result struct {
	messages       int
	elapsed        time.Duration
	p50, p99       time.Duration // of one operation
	client, server usage         // what the two processes spent
}

// rate is in messages per second.
func (r result) rate() float64 { return float64(r.messages) / r.elapsed.Seconds() }

// usage is what a process has spent since it started, or the difference of two such.
type usage struct {
	cpu     time.Duration // user and system
	mallocs uint64
}

func selfUsage() usage {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return usage{cpu: processCPU(), mallocs: m.Mallocs}
}

func (u usage) minus(v usage) usage {
	return usage{cpu: u.cpu - v.cpu, mallocs: u.mallocs - v.mallocs}
}

// latencies holds each worker's newest latencies in nanoseconds. It is
// allocated before the clock runs, once for all rows of a benchmark.
type latencies struct {
	workers [][]uint32
	all     []uint32
}

func newLatencies(workers int) *latencies {
	l := &latencies{workers: make([][]uint32, workers), all: make([]uint32, 0, 1<<20)}
	for i := range l.workers {
		l.workers[i] = make([]uint32, max(1<<20/workers, 1))
	}
	return l
}

// quantiles returns p50 and p99 of what the workers recorded, counts[i] of worker i.
func (l *latencies) quantiles(counts []int) (p50, p99 time.Duration) {
	l.all = l.all[:0]
	for i, n := range counts {
		l.all = append(l.all, l.workers[i][:min(n, len(l.workers[i]))]...)
	}
	slices.Sort(l.all)
	at := func(q int) time.Duration { return time.Duration(l.all[(len(l.all)-1)*q/100]) }
	return at(50), at(99)
}

// hangTime is how much longer than planned a turn may take.
const hangTime = 20 * time.Second

// run lets w.workers repeat their operation for d and measures that. The same
// code drives every row; it reads the clock once for each operation.
func (c *benchClient) run(w workload, d time.Duration, l *latencies, server *benchServer) (result, error) {
	var (
		ready, done sync.WaitGroup
		start       = make(chan struct{})
		begin       time.Time
		counts      = make([]int, w.workers)
		failed      = make([]error, w.workers)
	)
	for i := range w.workers {
		ready.Add(1)
		done.Go(func() {
			op, lat, n := c.worker(i), l.workers[i], 0
			ready.Done()
			<-start
			for last := time.Duration(0); last < d && failed[i] == nil; n++ {
				failed[i] = op()
				now := time.Since(begin)
				lat[n%len(lat)] = uint32(min(now-last, 1<<32-1))
				last = now
				if c.between != nil && failed[i] == nil {
					failed[i] = c.between()
					last = time.Since(begin)
				}
			}
			counts[i] = n
		})
	}
	ready.Wait()
	watchdog := time.AfterFunc(d+hangTime, func() {
		server.ask("stacks")
		debug.SetTraceback("all")
		panic("a turn of the benchmark hangs; above are the server's goroutines, below the client's")
	})
	defer watchdog.Stop()
	server0, err := server.usage()
	client0 := selfUsage()
	begin = time.Now()
	close(start)
	done.Wait()
	err = errors.Join(append(failed, err)...)
	if err == nil && c.settle != nil {
		err = c.settle()
	}
	if err != nil {
		return result{}, err
	}
	r := result{elapsed: time.Since(begin), client: selfUsage().minus(client0)}
	server1, err := server.usage()
	r.server = server1.minus(server0)
	for _, n := range counts {
		r.messages += n * w.batch
	}
	r.p50, r.p99 = l.quantiles(counts)
	return r, err
}

// stamp makes a message unlike the others: seq in front, its lowest byte also last.
func stamp(message []byte, seq uint64) {
	binary.LittleEndian.PutUint64(message, seq)
	message[len(message)-1] = byte(seq)
}

// checkStamp reports an answer that is not the echo of message seq of the given size.
func checkStamp(answer []byte, size int, seq uint64) error {
	if len(answer) != size || binary.LittleEndian.Uint64(answer) != seq || answer[size-1] != byte(seq) {
		return fmt.Errorf("message %#x: the answer of %d bytes is not its echo of %d", seq, len(answer), size)
	}
	return nil
}

// firstSeq keeps the messages of different workers apart.
func firstSeq(worker int) uint64 { return uint64(worker) << 40 }

// A tally counts one-way messages and adds up their last bytes: the sender's
// and the receiver's must agree. Each worker has its own, on its own cache line.
type tally struct {
	count, sum uint64
	_          [112]byte
}

func (t *tally) add(message []byte) {
	t.count++
	t.sum += uint64(message[len(message)-1])
}

// checkTallies compares the senders' tallies with the receiver's answer.
func checkTallies(sent []tally, answer []byte) error {
	if len(answer) != 16 {
		return fmt.Errorf("the receiver's tally has %d bytes, not 16", len(answer))
	}
	var all tally
	for i := range sent {
		all.count += sent[i].count
		all.sum += sent[i].sum
	}
	count, sum := binary.LittleEndian.Uint64(answer), binary.LittleEndian.Uint64(answer[8:])
	if count != all.count || sum != all.sum {
		return fmt.Errorf("sent %d messages (sum %d), handled %d (sum %d)", all.count, all.sum, count, sum)
	}
	return nil
}

// appendTally is the answer that checkTallies expects.
func appendTally(dst []byte, t *tally) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, t.count)
	return binary.LittleEndian.AppendUint64(dst, t.sum)
}

// benchServices are what a server process can run. Each listens on a network
// ("unix" or "tcp") and returns the address and what ends it.
var benchServices = map[string]func(network string) (addr string, stop func(), err error){}

const benchChild = "bench"

func init() { children[benchChild] = runBenchChild }

// runBenchChild is the server process. The first line of its input names the
// service and the network, and is answered by the address; each further line
// asks for its usage, or for all its goroutines on standard error. The end of
// its input ends it.
func runBenchChild() {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, "bench server:", err)
		os.Exit(1)
	}
	in := bufio.NewScanner(os.Stdin)
	if !in.Scan() {
		return
	}
	service, network, _ := strings.Cut(in.Text(), " ")
	serve := benchServices[service]
	if serve == nil {
		fail(fmt.Errorf("no such service: %q", service))
	}
	addr, stop, err := serve(network)
	if err != nil {
		fail(err)
	}
	defer stop()
	fmt.Println(addr)
	for in.Scan() {
		if in.Text() == "stacks" {
			pprof.Lookup("goroutine").WriteTo(os.Stderr, 2)
		}
		u := selfUsage()
		fmt.Println(int64(u.cpu), u.mallocs)
	}
}

// A benchServer is a server process, seen from the client's.
type benchServer struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	addr string
	stop func() // ends the process
}

// startServer starts a server process. It ends with the test at the latest.
func startServer(tb testing.TB, service, network string) *benchServer {
	tb.Helper()
	s := &benchServer{cmd: childCommand(benchChild, fmt.Sprint("GOMAXPROCS=", runtime.GOMAXPROCS(0)))}
	// Such as "taskset -c 1": which processors the two run on decides much.
	if with := strings.Fields(os.Getenv("PLUGWIRE_BENCH_SERVER")); len(with) > 0 {
		runner := exec.Command(with[0], append(with[1:], s.cmd.Path)...)
		runner.Env, s.cmd = s.cmd.Env, runner
	}
	s.in, s.out = startChild(tb, s.cmd)
	s.stop = sync.OnceFunc(func() {
		s.in.Close()
		if err := s.cmd.Wait(); err != nil {
			tb.Errorf("server process of %s: %v", service, err)
		}
	})
	tb.Cleanup(s.stop)
	var err error
	if s.addr, err = s.ask(service + " " + network); err != nil {
		tb.Fatal(err)
	}
	return s
}

// ask sends a line and returns the line that answers it.
func (s *benchServer) ask(line string) (string, error) {
	if _, err := fmt.Fprintln(s.in, line); err != nil {
		return "", fmt.Errorf("server process: %w", err)
	}
	answer, err := s.out.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("server process: %w", err)
	}
	return strings.TrimSpace(answer), nil
}

func (s *benchServer) usage() (usage, error) {
	answer, err := s.ask("usage")
	if err != nil {
		return usage{}, err
	}
	var u usage
	_, err = fmt.Sscan(answer, (*int64)(&u.cpu), &u.mallocs)
	return u, err
}
