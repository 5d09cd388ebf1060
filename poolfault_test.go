package plugwire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// faultyTransport dials another one's addresses with connections that can be
// stalled: nothing that was sent to them arrives any more.
type faultyTransport struct {
	Transport
	mu    sync.Mutex
	conns []*faultyConn
}

func (f *faultyTransport) Dial(ctx context.Context, addr string, cfg *Config) (net.Conn, error) {
	nc, err := f.Transport.Dial(ctx, addr, cfg)
	if err != nil {
		return nil, err
	}
	fc := &faultyConn{Conn: nc, closed: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns = append(f.conns, fc)
	return fc, nil
}

type faultyConn struct {
	net.Conn
	stalled atomic.Bool
	once    sync.Once
	closed  chan struct{}
}

func (f *faultyConn) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	if f.stalled.Load() {
		<-f.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (f *faultyConn) Close() error {
	f.once.Do(func() { close(f.closed) })
	return f.Conn.Close()
}

// TestPoolStalledConnection gets next to no calls, whether callers wait for it
// or give up, and with requests that wait for room before they have a place.
func TestPoolStalledConnection(t *testing.T) {
	for _, c := range []struct {
		name    string
		size    int
		timeout time.Duration
	}{{"patient", 64, 0}, {"impatient", 64, 25 * time.Millisecond}, {"large", 48 << 10, 0}} {
		t.Run(c.name, func(t *testing.T) {
			watchdog(t)
			addr := "pipe:" + t.Name()
			startPoolServer(t, addr, echoMux(nil))
			tr := &faultyTransport{Transport: testPipes}
			p := closedPool(t, NewPool(withPipes(&Config{Pool: PoolConfig{Size: 4}, CloseTimeout: 20 * time.Millisecond}, tr), addr))
			opens(t, p, 4)
			var stop atomic.Bool
			var begun atomic.Int64
			var wg sync.WaitGroup
			ctx, cancel := context.WithCancel(background)
			for range 64 {
				wg.Go(func() {
					req := make([]byte, c.size)
					for !stop.Load() {
						ctx, done := ctx, context.CancelFunc(func() {})
						if c.timeout > 0 {
							ctx, done = context.WithTimeout(ctx, c.timeout)
						}
						begun.Add(1)
						_, err := p.Call(ctx, "echo", req)
						done()
						if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
							t.Error(err)
							return
						}
					}
				})
			}
			until(t, "traffic", func() bool { return begun.Load() > 200 })
			tr.mu.Lock()
			victim := tr.conns[0]
			tr.mu.Unlock()
			victim.stalled.Store(true)
			i := slices.IndexFunc(*p.ready.Load(), func(pc *poolConn) bool { return pc.conn.nc == net.Conn(victim) || victim.under(pc.conn.nc) })
			if i < 0 {
				t.Fatal("the stalled connection is not among those of the Pool")
			}
			stalled := (*p.ready.Load())[i]
			time.Sleep(100 * time.Millisecond)
			// Those that wait before they have a slot count too.
			share := func() (of, all int64) {
				return int64(stalled.conn.Stats().CallsSent) + stalled.conn.expecting.Load(), begun.Load()
			}
			of0, all0 := share()
			time.Sleep(100 * time.Millisecond)
			until(t, "500 calls", func() bool { return begun.Load() >= all0+500 || t.Failed() })
			of, all := share()
			of, all = of-of0, all-all0
			t.Logf("after 100 ms: %d of %d calls went to the stalled connection, %d wait for it", of, all, stalled.conn.expecting.Load())
			if of*50 > all {
				t.Errorf("of %d calls after 100 ms %d went to the stalled connection", all, of)
			}
			stop.Store(true)
			cancel()
			wg.Wait()
		})
	}
}

// under says whether c runs over f.
func (f *faultyConn) under(c net.Conn) bool {
	s, ok := c.(sealer)
	return ok && s.below() == net.Conn(f)
}

const poolLogEnv = "PLUGWIRE_TEST_POOL_LOG"

func init() { children["pool"] = poolChild }

// poolChild is a server that is going to be killed. What it runs it writes to a
// file first, a record of 8 bytes for each call.
func poolChild() {
	log, err := os.OpenFile(os.Getenv(poolLogEnv), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	m := NewMux()
	m.Handle("work", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		if _, err := log.Write(r.Payload()); err != nil {
			return reply, err
		}
		return append(reply, r.Payload()...), nil
	}))
	s := &Server{Mux: m}
	l, err := s.Listen(os.Getenv(childAddrEnvPool))
	fmt.Println("listening:", err)
	if err == nil {
		go s.Serve(l)
		os.Stdin.Read(make([]byte, 1)) // until the parent is gone
	}
}

const childAddrEnvPool = "PLUGWIRE_TEST_POOL_ADDR"

func startPoolChild(t *testing.T, addr, log string) (kill func()) {
	t.Helper()
	cmd := childCommand("pool", childAddrEnvPool+"="+addr, poolLogEnv+"="+log)
	stdin, stdout := startChild(t, cmd)
	kill = sync.OnceFunc(func() { cmd.Process.Kill(); cmd.Wait(); stdin.Close() })
	t.Cleanup(kill)
	if line, err := stdout.ReadString('\n'); line != "listening: <nil>\n" {
		t.Fatalf("the child says %q, %v", line, err)
	}
	return kill
}

// TestPoolServerKilled again and again, by SIGKILL and under 64 callers: calls go
// on at the next server; none that was answered is lost, none runs twice unless it
// is idempotent, none that is said not to have run has, and no idempotent one fails.
func TestPoolServerKilled(t *testing.T) {
	if runtime.GOOS == "windows" || runtime.GOOS == "js" {
		t.Skip("no Unix sockets or processes here")
	}
	watchdog(t)
	dir := t.TempDir()
	addr, log := "unix://"+filepath.Join(dir, "s"), filepath.Join(dir, "log")
	if err := os.WriteFile(log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	kill := startPoolChild(t, addr, log)
	p := newTestPool(t, poolConfig(PoolConfig{Size: 4, MaxWait: 20 * time.Second, MaxBackOff: 20 * time.Millisecond, MaxTries: 20}), addr)
	var stop atomic.Bool
	var wg sync.WaitGroup
	var good, lost, refused atomic.Int64
	var outcomes sync.Map // error of each call, by id
	const idempotent = 1 << 63
	for i := range 64 {
		wg.Go(func() {
			for n := uint64(0); !stop.Load(); n++ {
				id := uint64(i)<<32 | n
				if n%2 == 1 {
					id |= idempotent
				}
				call := &Call{Method: "work", Request: binary.LittleEndian.AppendUint64(nil, id), Idempotent: id&idempotent != 0}
				err := p.Do(background, call)
				outcomes.Store(id, callOutcome{err})
				switch {
				case err == nil && bytes.Equal(call.Reply, call.Request):
					good.Add(1)
				case err == nil || CodeOf(err) != Unavailable || call.Idempotent:
					t.Errorf("call %x: %q, %v", id, call.Reply, err)
				case NotRun(err):
					refused.Add(1)
				default:
					lost.Add(1)
				}
			}
		})
	}
	rounds := 6
	if os.Getenv("PLUGWIRE_LONG") != "" {
		rounds = 60
	}
	for range rounds {
		before := good.Load()
		until(t, "calls to go on", func() bool { return good.Load() > before+500 })
		kill()
		kill = startPoolChild(t, addr, log)
	}
	before := good.Load()
	until(t, "calls to go on", func() bool { return good.Load() > before+500 })
	stop.Store(true)
	wg.Wait()
	b, err := os.ReadFile(log)
	if err != nil || len(b)%8 != 0 {
		t.Fatal(len(b), err)
	}
	ran := make(map[uint64]int)
	for ; len(b) > 0; b = b[8:] {
		ran[binary.LittleEndian.Uint64(b)]++
	}
	again := 0
	outcomes.Range(func(key, value any) bool {
		id, err := key.(uint64), value.(callOutcome).err
		switch n := ran[id]; {
		case err == nil && n == 0:
			t.Errorf("call %x was answered and has not run", id)
		case id&idempotent == 0 && n > 1:
			t.Errorf("call %x ran %d times", id, n)
		case NotRun(err) && n > 0:
			t.Errorf("call %x ran: %v", id, err)
		case n > 1:
			again++
		}
		return true
	})
	s := p.Stats()
	t.Logf("%d kills: %d calls answered, %d that may have run, %d not run; %d idempotent ones ran twice; %d retries, %d dials",
		rounds, good.Load(), lost.Load(), refused.Load(), again, s.Retried, s.Dials)
	if s.Dials < uint64(rounds) || lost.Load() == 0 {
		t.Errorf("nothing was killed under a call: %+v", s)
	}
}

type callOutcome struct{ err error }

// TestPoolRollingRestart of three servers, in order and under load: no call fails.
func TestPoolRollingRestart(t *testing.T) {
	watchdog(t)
	var addrs []string
	var servers []*poolServer
	m := echoMux(nil)
	m.HandleFunc("slow", func(_ context.Context, req []byte) ([]byte, error) { time.Sleep(3 * time.Millisecond); return req, nil })
	for i := range 3 {
		addrs = append(addrs, poolAddr(t, fmt.Sprint(i)))
		servers = append(servers, startPoolServer(t, addrs[i], m))
	}
	p := newTestPool(t, poolConfig(PoolConfig{MaxBackOff: 20 * time.Millisecond, Size: 3}), addrs...)
	var stop atomic.Bool
	var wg sync.WaitGroup
	var good atomic.Int64
	for i := range 64 {
		wg.Go(func() {
			for n := uint64(0); !stop.Load(); n++ {
				var err error
				if i < 48 {
					err = checkCall(background, p, 20+int(n%3000), n)
				} else if i < 60 {
					_, err = p.Call(background, "slow", []byte("x"))
				} else {
					err = p.DoAll(background, []*Call{{Method: "echo"}, {Method: "slow"}, {Method: "echo"}})
				}
				if err != nil {
					t.Errorf("a call failed: %v (NotRun %v)", err, NotRun(err))
					return
				}
				good.Add(1)
			}
		})
	}
	opens(t, p, 3)
	for round := range 4 {
		for i := range servers {
			before := good.Load()
			servers[i].drain(t)
			servers[i] = startPoolServer(t, addrs[i], m)
			if round%2 == 0 { // else the next goes while this one is not back yet
				until(t, "the server to be used again", func() bool { return len(*p.ready.Load()) == 3 })
			}
			until(t, "calls to go on", func() bool { return good.Load() > before+100 || t.Failed() })
		}
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d calls during 12 restarts, %+v", good.Load(), p.Stats())
}

// TestL05PoolAtRandom: calls, cancelled ones, streams, servers that are killed or
// drain, connections that get old or idle, all at random: the Pool is never above
// its size, every call ends once, and the sums agree. It takes ten minutes with
// PLUGWIRE_LONG.
func TestL05PoolAtRandom(t *testing.T) {
	t.Parallel()
	long := time.Second
	if os.Getenv("PLUGWIRE_LONG") != "" {
		long = 10 * time.Minute
	} else {
		watchdog(t)
	}
	const size = 5
	var ran sync.Map // *atomic.Int32 of each call that cannot run twice
	m := echoMux(nil)
	m.Handle("work", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		if n, ok := ran.Load(string(r.Payload())); ok {
			n.(*atomic.Int32).Add(1)
		}
		if rand.IntN(100) == 0 {
			time.Sleep(time.Millisecond)
		}
		return append(reply, r.Payload()...), nil
	}))
	m.HandleStream("stream", func(s *Stream) error {
		b, err := s.Recv()
		if err == nil {
			err = s.Send(b)
		}
		return err
	})
	m.Use(randomTakeOvers(50))
	var addrs []string
	var servers [2]*poolServer
	for i := range servers {
		addrs = append(addrs, poolAddr(t, fmt.Sprint(i)))
		servers[i] = startPoolServer(t, addrs[i], m)
	}
	p := NewPool(testConfig(poolConfig(PoolConfig{Size: size, MaxBackOff: 5 * time.Millisecond, MaxWait: 5 * time.Second,
		MaxAge: 50 * time.Millisecond, IdleTime: 20 * time.Millisecond})), addrs...)
	defer p.Close()
	var stop atomic.Bool
	var wg sync.WaitGroup
	var begun, good, notRun, mayHave atomic.Int64
	var ended sync.Map // calls that failed, by id
	check := func(id string, call *Call) {
		count, _ := ran.Load(id)
		n, err := count.(*atomic.Int32).Load(), call.Err
		if err == nil && n == 0 || NotRun(err) && n > 0 || !call.Idempotent && n > 1 {
			t.Errorf("%q ran %d times and ended with %v (NotRun %v, idempotent %v)", id, n, err, NotRun(err), call.Idempotent)
		}
	}
	for g := range 16 {
		rng := rand.New(rand.NewPCG(uint64(g), uint64(time.Now().UnixNano())))
		wg.Go(func() {
			for n := 0; !stop.Load() && !t.Failed(); n++ {
				ctx, cancel := background, context.CancelFunc(func() {})
				if rng.IntN(3) == 0 {
					ctx, cancel = context.WithTimeout(background, time.Duration(rng.IntN(2000))*time.Microsecond)
				}
				switch rng.IntN(20) {
				case 0:
					if s, err := p.OpenStream(ctx, "stream"); err == nil {
						if rng.IntN(2) == 0 && s.Send([]byte("x")) == nil {
							s.Recv()
						}
						s.Close()
					}
				case 1:
					p.Notify(ctx, "echo", []byte("x"))
				case 2:
					time.Sleep(time.Duration(rng.IntN(30)) * time.Millisecond)
				default:
					id := fmt.Sprint(g, n)
					ran.Store(id, new(atomic.Int32))
					call := &Call{Method: "work", Request: []byte(id), Idempotent: rng.IntN(2) == 0}
					begun.Add(1)
					var err error
					if rng.IntN(4) == 0 {
						err = p.DoAll(ctx, []*Call{call})
					} else {
						err = p.Do(ctx, call)
					}
					switch {
					case err == nil && string(call.Reply) == id:
						good.Add(1)
					case err == nil:
						t.Errorf("reply %q to %q", call.Reply, id)
					case NotRun(err):
						notRun.Add(1)
					default:
						mayHave.Add(1)
					}
					call.Err = err
					check(id, call)
					if err == nil {
						ran.Delete(id)
					} else { // it may run by and by
						ended.Store(id, call)
					}
				}
				cancel()
			}
		})
	}
	wg.Go(func() { // breaks things
		for i := 0; !stop.Load() && !t.Failed(); i++ {
			time.Sleep(time.Duration(rand.IntN(40)) * time.Millisecond)
			s := &servers[rand.IntN(2)]
			switch rand.IntN(4) {
			case 0:
				(*s).kill()
				*s = startPoolServer(t, (*s).addr, m)
			case 1:
				(*s).drain(t)
				*s = startPoolServer(t, (*s).addr, m)
			default:
				if ready := *p.ready.Load(); len(ready) > 0 {
					ready[rand.IntN(len(ready))].conn.nc.Close()
				}
			}
		}
	})
	most := 0
	for start := time.Now(); time.Since(start) < long && !t.Failed(); time.Sleep(100 * time.Microsecond) {
		p.mu.Lock()
		ready := *p.ready.Load()
		dials, conns := 0, 0
		for _, e := range p.endpoints {
			dials, conns = dials+e.dials, conns+e.conns
		}
		if len(ready) > size || p.places > size || dials > p.places || conns != len(ready) || p.connecting+len(ready) != p.places {
			t.Errorf("%d ready, counted %d, %d dials, %d places of which %d have nothing", len(ready), conns, dials, p.places, p.connecting)
		}
		most = max(most, len(ready))
		p.mu.Unlock()
	}
	stop.Store(true)
	wg.Wait()
	for _, s := range servers {
		s.drain(t) // so that what was given up has run, or never will
	}
	ended.Range(func(id, call any) bool { check(id.(string), call.(*Call)); return true })
	if sum := good.Load() + notRun.Load() + mayHave.Load(); sum != begun.Load() {
		t.Errorf("%d calls begun, %d ended", begun.Load(), sum)
	}
	before := p.Stats()
	if err := p.Shutdown(background); err != nil {
		t.Error(err)
	}
	s := p.Stats()
	if s.Open+s.Draining+s.Dialing+s.Waiting+s.InFlight != 0 || s.Dials < s.DialErrors || s.CallsSent != before.CallsSent {
		t.Errorf("after Shutdown: %+v, before %+v", s, before)
	}
	// Every attempt was counted by one connection, and there were as many as calls and retries.
	if attempts := int64(s.CallsSent); attempts < good.Load() || attempts > begun.Load()+int64(s.Retried) {
		t.Errorf("%d attempts of %d calls with %d retries", attempts, begun.Load(), s.Retried)
	}
	t.Logf("%d calls: %d good, %d not run, %d that may have; at most %d connections; %+v",
		begun.Load(), good.Load(), notRun.Load(), mayHave.Load(), most, s)
}
