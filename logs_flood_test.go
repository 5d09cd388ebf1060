package plugwire

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func init() {
	behaviours["floods"] = func() {
		mux := testPluginMux()
		mux.HandleFunc("flood", func(_ context.Context, request []byte) ([]byte, error) {
			var f logFlood
			if _, err := fmt.Sscan(string(request), &f.kind, &f.bytes, &f.perSecond); err != nil {
				return nil, err
			}
			return fmt.Append(nil, f.print()), nil
		})
		must(ServePlugin(mux, nil))
	}
}

// logFlood is what a plugin prints on stderr.
type logFlood struct {
	kind      string // of lines
	bytes     int
	perSecond int // 0: as fast as possible
}

// print prints whole blocks of lines, at least f.bytes, and returns the number of lines.
func (f *logFlood) print() (lines int) {
	var block bytes.Buffer
	switch f.kind {
	case "log":
		for i := 0; block.Len() < 32<<10; i++ {
			fmt.Fprintf(&block, "2025/01/02 15:04:05 request %d took 12ms, as many before it have\n", i)
			fmt.Fprintf(&block, `{"time":"2025-01-02T15:04:05.678901Z","level":"INFO","msg":"request","method":"GET","path":"/v1/items/%d","took":12.5}`+"\n", i)
			fmt.Fprintf(&block, `{"@level":"debug","@message":"request","@module":"http","@timestamp":"2025-01-02T15:04:05.678901Z","n":%d}`+"\n", i)
		}
	case "line": // one of 10 MB
		block.WriteString(strings.Repeat("long ", 2<<20) + "\n")
	case "garbage":
		r := rand.New(rand.NewPCG(1, 2))
		for range 32 << 10 {
			block.WriteByte(byte(r.IntN(256)))
		}
	case "records":
		for block.Len() < 32<<10 {
			block.WriteString(`{"@message":1}` + "\n" + `{"level":"INFO","msg":` + "\n{\n" + `{"@level":{},"@message":[]}` + "\n")
		}
	}
	start := time.Now()
	for printed := 0; printed < f.bytes; {
		if f.perSecond > 0 {
			due := time.Duration(float64(printed) / float64(f.perSecond) * float64(time.Second))
			time.Sleep(due - time.Since(start)) // the rate is what is asked for
		}
		n, err := os.Stderr.Write(block.Bytes())
		must(err)
		printed += n
		lines += bytes.Count(block.Bytes(), []byte("\n"))
	}
	return lines
}

// heapPeak samples the heap until the returned function is called, which returns
// by how much it grew at most.
func heapPeak() func() int64 {
	runtime.GC()
	heap := func() int64 {
		s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(s)
		return int64(s[0].Value.Uint64())
	}
	before, stop, peak := heap(), make(chan struct{}), make(chan int64)
	go func() {
		most := before
		for {
			select {
			case <-time.After(2 * time.Millisecond):
				most = max(most, heap())
			case <-stop:
				peak <- most - before
				return
			}
		}
	}()
	return func() int64 { close(stop); return <-peak }
}

// greetUntil makes calls until done is closed, all of which must succeed. It
// returns their number, and how long the last of them took, in ascending order.
func greetUntil(t *testing.T, p *Plugin, took []time.Duration, done <-chan struct{}) (int, []time.Duration) {
	for n := 0; ; {
		start := time.Now()
		reply, err := p.Call(t.Context(), "greet", []byte("you"))
		took[n%len(took)] = time.Since(start)
		n++
		if err != nil || string(reply) != "hello, you" {
			t.Fatalf("call %d: %q, %v", n, reply, err)
		}
		select {
		case <-done:
			took = took[:min(n, len(took))]
			slices.Sort(took)
			return n, took
		default:
		}
	}
}

// TestFloodOfLogs: calls go on, and the host's memory does not grow, whatever a
// plugin prints. PLUGWIRE_LONG prints 1 GB in a minute, and another as
// fast as it can.
func TestFloodOfLogs(t *testing.T) {
	const maxGrowth = 32 << 20 // of the heap, garbage included
	floods := []logFlood{
		{"log", 2 << 20, 17 << 20}, // 1 GB a minute
		{"log", 4 << 20, 0},
		{"line", 10 << 20, 0},
		{"garbage", 4 << 20, 0},
		{"records", 2 << 20, 0},
	}
	if longTests {
		floods[0].bytes, floods[1].bytes = 1<<30, 1<<30
	}
	for _, logger := range []string{"slog", "none"} {
		for i, flood := range floods {
			t.Run(fmt.Sprintf("%s/%d-%s", logger, i, flood.kind), func(t *testing.T) {
				if logger == "none" && i > 1 && !longTests {
					t.Skip("as above, with less to do")
				}
				if raceEnabled {
					flood.bytes = min(flood.bytes, 2<<20)
				}
				var records atomic.Int64
				lt := newLaunchTest(t, "floods")
				if logger == "slog" {
					handler := slog.NewJSONHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelDebug})
					lt.cfg.Logger = slog.New(&countingHandler{handler, &records})
				}
				p := lt.launch()
				idle := make(chan struct{})
				time.AfterFunc(time.Duration(longRun(20, 100))*time.Millisecond, func() { close(idle) })
				took := make([]time.Duration, 2<<16)
				_, before := greetUntil(t, p, took[:1<<16], idle)

				growth := heapPeak()
				flooded := make(chan struct{})
				var lines int
				var err error
				start := time.Now()
				go func() {
					defer close(flooded)
					var reply []byte
					if reply, err = p.Call(t.Context(), "flood", fmt.Append(nil, flood.kind, " ", flood.bytes, " ", flood.perSecond)); err == nil {
						_, err = fmt.Sscan(string(reply), &lines)
					}
				}()
				calls, during := greetUntil(t, p, took[1<<16:], flooded)
				lasted, grown := time.Since(start), growth()
				if err != nil {
					t.Fatal(err)
				}
				if err := p.Close(); err != nil {
					t.Fatal(err)
				}
				if log := p.cur.Load().proc.stderr.log; log != nil {
					<-log.done
				}
				t.Logf("%d MB, %d lines in %.2f s: %d records; heap at most +%.1f MiB; p50 of %d calls %v, p99 %v (before: %v, %v)",
					flood.bytes>>20, lines, lasted.Seconds(), records.Load(), float64(grown)/(1<<20), calls,
					during[len(during)/2], during[len(during)*99/100], before[len(before)/2], before[len(before)*99/100])
				if grown > maxGrowth {
					t.Errorf("the heap grew by %d bytes", grown)
				}
				if logger == "slog" && flood.kind != "garbage" && int(records.Load()) != lines {
					t.Errorf("%d records, or said to be dropped, of %d lines", records.Load(), lines)
				}
			})
		}
	}
}

// countingHandler counts records, and the lines that one says were dropped.
type countingHandler struct {
	slog.Handler
	n *atomic.Int64
}

func (h *countingHandler) WithAttrs(a []slog.Attr) slog.Handler {
	return &countingHandler{h.Handler.WithAttrs(a), h.n}
}

func (h *countingHandler) Handle(ctx context.Context, r slog.Record) error {
	n := int64(1)
	if strings.HasPrefix(r.Message, "plugwire: plugin ") { // an event
		n = 0
	} else if strings.HasPrefix(r.Message, "plugwire: ") {
		r.Attrs(func(a slog.Attr) bool { n = a.Value.Int64(); return a.Key != "lines" })
	}
	h.n.Add(n)
	return h.Handler.Handle(ctx, r)
}
