package plugwire

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// saidAddresses is a Resolver that says what a test says.
type saidAddresses struct {
	say     chan []string
	fail    chan error
	watches atomic.Int32
}

func newSaidAddresses() *saidAddresses {
	return &saidAddresses{say: make(chan []string), fail: make(chan error)}
}

func (r *saidAddresses) Watch(ctx context.Context, update func([]string)) error {
	r.watches.Add(1)
	for {
		select {
		case addrs := <-r.say:
			update(addrs)
			clear(addrs) // the Pool keeps a copy
		case err := <-r.fail:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// namedServers starts servers whose method "who" tells which one it is.
func namedServers(t testing.TB, n int) (addrs []string, servers []*poolServer) {
	for i := range n {
		m := echoMux(nil)
		m.HandleFunc("who", func(context.Context, []byte) ([]byte, error) { return fmt.Append(nil, i), nil })
		s := startPoolServer(t, poolAddr(t, fmt.Sprint("s", i)), m)
		servers, addrs = append(servers, s), append(addrs, s.addr)
	}
	return addrs, servers
}

// connsOf returns how many connections the Pool has to each of addrs.
func connsOf(p *Pool, addrs []string) []int {
	conns := make([]int, len(addrs))
	for _, e := range p.Stats().Endpoints {
		if i := slices.Index(addrs, e.Addr); i >= 0 {
			conns[i] = e.Conns
		}
	}
	return conns
}

// TestPoolFollowsItsResolver moves a Pool from server to server under calls, none
// of which fails.
func TestPoolFollowsItsResolver(t *testing.T) {
	watchdog(t)
	addrs, servers := namedServers(t, 3)
	r := newSaidAddresses()
	p := newTestPool(t, poolConfig(PoolConfig{Size: 2, Resolver: r}))
	if r.watches.Load() != 0 {
		t.Error("the resolver was asked before the first call")
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop.Store(true)
	for range 8 {
		wg.Go(func() {
			for !stop.Load() {
				if _, err := p.Call(background, "echo", nil); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for _, step := range []struct {
		has  []string
		want []int
	}{
		{addrs[:1], []int{2, 0, 0}},
		{addrs[:2], []int{1, 1, 0}},
		{addrs[2:], []int{0, 0, 2}},
		{[]string{addrs[0], addrs[2], addrs[0]}, []int{1, 0, 1}},
		{nil, []int{1, 0, 1}}, // what it has stays
		{addrs[1:2], []int{0, 2, 0}},
	} {
		r.say <- slices.Clone(step.has)
		until(t, fmt.Sprintf("connections %v", step.want), func() bool {
			conns := make([]int, len(servers))
			for i, s := range servers {
				conns[i] = s.Stats().Conns
			}
			return slices.Equal(conns, step.want) && slices.Equal(connsOf(p, addrs), step.want) || t.Failed()
		})
	}
	stop.Store(true)
	wg.Wait()
	if b, err := p.Call(background, "who", nil); err != nil || string(b) != "1" {
		t.Errorf("at last %s answers (%v)", b, err)
	}
	if r.watches.Load() != 1 {
		t.Errorf("%d watches", r.watches.Load())
	}
}

// TestPoolWithoutSizeFollowsTheNumberOfAddresses, which is its size.
func TestPoolWithoutSizeFollowsTheNumberOfAddresses(t *testing.T) {
	watchdog(t)
	addrs, _ := namedServers(t, 6)
	r := newSaidAddresses()
	p := newTestPool(t, poolConfig(PoolConfig{Resolver: r}), addrs[0]) // which serves until there are more
	if _, err := p.Call(background, "echo", nil); err != nil {
		t.Fatal(err)
	}
	r.say <- slices.Clone(addrs)
	opens(t, p, 6)
	r.say <- slices.Clone(addrs[3:4])
	most := 1
	if p.cfg.hasTLS() {
		most = mostByDefault
	}
	until(t, "the others to end", func() bool {
		s := p.Stats()
		return s.Open >= 1 && s.Open <= most && s.Draining == 0 && s.Dialing == 0 && len(s.Endpoints) == 1
	})
	p.mu.Lock()
	places := p.places
	p.mu.Unlock()
	if open := p.Stats().Open; places != open {
		t.Errorf("%d places for %d connections", places, open)
	}
	if b, err := p.Call(background, "who", nil); err != nil || string(b) != "3" {
		t.Errorf("%s answers (%v)", b, err)
	}
}

// TestPoolWhoseResolverFails has callers wait, and tells them why.
func TestPoolWhoseResolverFails(t *testing.T) {
	watchdog(t)
	addrs, _ := namedServers(t, 1)
	r := newSaidAddresses()
	p := newTestPool(t, poolConfig(PoolConfig{MaxWait: 20 * time.Second, MaxBackOff: time.Millisecond, Resolver: r}))
	ended := make(chan error, 1)
	go func() { _, err := p.Call(background, "echo", nil); ended <- err }()
	for range 3 {
		r.fail <- errors.New("no such name")
	}
	ctx, cancel := context.WithCancel(background)
	second := make(chan error, 1)
	go func() { _, err := p.Call(ctx, "echo", nil); second <- err }()
	until(t, "the second call to wait", func() bool { return p.Stats().Waiting == 2 })
	cancel()
	err := receive(t, "the second call", second)
	wantCode(t, err, Canceled, true)
	if !strings.Contains(err.Error(), "no such name") {
		t.Errorf("why there is no address is missing: %v", err)
	}
	r.say <- slices.Clone(addrs)
	if err := receive(t, "the first call", ended); err != nil {
		t.Error(err)
	}
	r.fail <- errors.New("again")
	r.fail <- errors.New("and again")
	if _, err := p.Call(background, "echo", nil); err != nil {
		t.Errorf("the address is there: %v", err)
	}
}

// TestPoolEndpointStats looks at what is counted of each address, a dead one among them.
func TestPoolEndpointStats(t *testing.T) {
	watchdog(t)
	addrs, servers := namedServers(t, 2)
	dead := poolAddr(t, "dead")
	p := newTestPool(t, poolConfig(PoolConfig{Size: 3, MaxBackOff: time.Hour}), addrs[0], addrs[1], dead)
	opens(t, p, 2)
	until(t, "the dead one to have failed", func() bool {
		var wg sync.WaitGroup
		for range 8 { // so that a third connection is wanted
			wg.Go(func() { p.Call(background, "echo", nil) })
		}
		wg.Wait()
		return p.Stats().DialErrors > 2
	})
	servers[1].kill()
	until(t, "the second to be missed", func() bool { s := p.Stats(); return s.Open == 1 && s.Draining == 0 })
	s := p.Stats()
	if len(s.Endpoints) != 3 {
		t.Fatalf("%+v", s.Endpoints)
	}
	var calls, opened uint64
	for i, e := range s.Endpoints {
		if e.Addr != []string{addrs[0], addrs[1], dead}[i] || e.Transport != schemeOf(e.Addr) {
			t.Errorf("endpoint %d: %s over %s", i, e.Addr, e.Transport)
		}
		calls += e.CallsSent
		opened += e.ConnsOpened
	}
	if e := s.Endpoints[0]; e.Conns != 1 || e.CallsSent == 0 || e.LastError != "" || e.LeftAlone != 0 || e.Failures != 0 {
		t.Errorf("the good one: %+v", e)
	}
	if e := s.Endpoints[1]; e.Conns != 0 || e.ConnsOpened != 1 || e.ConnsBroken.Sum() != 1 {
		t.Errorf("the killed one: %+v", e)
	}
	if e := s.Endpoints[2]; e.Failures < 2 || e.ConnsFailed.Sum() < 2 || e.LastError == "" || e.LeftAlone <= 0 || e.ConnsOpened != 0 {
		t.Errorf("the dead one: %+v", e)
	}
	if calls != s.CallsSent || opened != s.ConnsOpened {
		t.Errorf("the endpoints have %d calls on %d connections, together %d on %d", calls, opened, s.CallsSent, s.ConnsOpened)
	}
}
