package plugwire

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A flood is what a hostile client of a server process does while another client
// makes calls: it writes the same frames without end, and connects again when its
// connection is ended, or uses a connection as it may, as fast as it can.
type flood struct {
	name   string
	frames []byte
	use    func(c *Conn) error // nil: frames
}

var floods = []flood{
	{name: "PING", frames: frame(FramePing, 0, 0, 0, "12345678")},
	{name: "CREDIT asked for", frames: ask()},
	{name: "CANCEL", frames: cancelFrame(1)},
	{name: "METHODS", frames: frame(FrameMethods, 0, 0, 0)},
	{name: "skippable", frames: frame(0x80, 0, 0, 0)},
	{name: "REPLY to nothing", frames: frame(FrameReply, FlagBack, 0, 1)},
	{name: "OPEN and RESET", frames: cat(frame(FrameOpen, 0, 0, 1, uint8(4), "sink"), resetFrame(1))},
	{name: "CALL and CANCEL", frames: cat(frame(FrameCall, 0, 0, 1, uint8(5), "sleep"), cancelFrame(1))},
	{name: "streams that are reset", use: func(c *Conn) error {
		s, err := c.OpenStream(context.Background(), "sink")
		if err == nil {
			s.Reset(Canceled)
		}
		return err
	}},
	{name: "calls that are cancelled", use: func(c *Conn) error {
		ctx, cancel := context.WithCancel(context.Background())
		go cancel()
		c.Call(ctx, "echo", nil)
		return c.Err()
	}},
	{name: "empty one-way messages", use: func(c *Conn) error { return c.Notify(context.Background(), "count", nil) }},
}

const floodChild = "flood"

func init() { children[floodChild] = runFloodChild }

// runFloodChild is the process that floods: the first line of its input is the
// number of the flood and the server's address. It says so when it has begun, and
// at the end of its input how often it connected.
func runFloodChild() {
	var (
		number int
		addr   string
		stop   atomic.Bool
	)
	if _, err := fmt.Scanln(&number, &addr); err != nil {
		panic(err)
	}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		stop.Store(true)
	}()
	connected := floods[number].run(addr, sync.OnceFunc(func() { fmt.Println("begun") }), &stop)
	fmt.Println(connected)
}

// run floods until stop, and returns how often it connected.
func (f *flood) run(addr string, begun func(), stop *atomic.Bool) (connected int) {
	frames := bytes.Repeat(f.frames, 200)
	for !stop.Load() {
		c, err := dialOurs(addr)
		if err != nil {
			panic(err)
		}
		connected++
		if f.use != nil {
			var users sync.WaitGroup
			for range 4 {
				users.Go(func() {
					for !stop.Load() {
						if err := f.use(c); err != nil {
							panic(err)
						}
						begun()
					}
				})
			}
			users.Wait()
		}
		for err == nil && !stop.Load() {
			_, err = c.nc.Write(frames)
			begun()
		}
		c.Close()
	}
	return connected
}

// T18: while one client floods a server, another's calls are answered, and the
// server holds little for the flood. The figure asked for, p99 at most ten times as
// long as without the flood, is printed: how long things take is the machine's.
func TestT18CallsBesideFloods(t *testing.T) {
	const most = 8 << 20
	calls := longRun(100, 5000)
	for i, f := range floods {
		t.Run(strings.ReplaceAll(f.name, " ", "-"), func(t *testing.T) {
			watchdog(t)
			server := startServer(t, "plugwire", "unix")
			defer server.stop()
			good, err := dialOurs(server.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer good.Close()
			p99 := func() time.Duration {
				took := make([]time.Duration, calls)
				for i := range took {
					start := time.Now()
					want := fill(64, uint64(i))
					if reply, err := good.Call(context.Background(), "echo", want); err != nil || !bytes.Equal(reply, want) {
						t.Fatalf("%q, %v", reply, err)
					}
					took[i] = time.Since(start)
				}
				slices.Sort(took)
				return took[(len(took)-1)*99/100]
			}
			memory := func() int64 {
				var now footprint
				if reply, err := good.Call(context.Background(), "footprint", nil); err != nil || json.Unmarshal(reply, &now) != nil {
					t.Fatalf("%q, %v", reply, err)
				}
				return now.Memory
			}
			p99() // warms both processes up
			quiet, before := p99(), memory()

			flooder := childCommand(floodChild)
			in, out := startChild(t, flooder)
			fmt.Fprintln(in, i, server.addr)
			if line, err := out.ReadString('\n'); line != "begun\n" {
				t.Fatalf("%q, %v", line, err)
			}
			beside := p99()
			more := memory() - before
			in.Close()
			connected, err := out.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if err := flooder.Wait(); err != nil {
				t.Error(err)
			}
			t.Logf("p99 of %d calls %v, without the flood %v: %.1f times; the server holds %d KiB more; the flood connected %s times",
				calls, beside, quiet, float64(beside)/float64(quiet), more>>10, strings.TrimSpace(connected))
			if more > most {
				t.Errorf("the server holds %d MiB more", more>>20)
			}
		})
	}
}
