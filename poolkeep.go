package plugwire

import (
	"context"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"
)

// How a Pool gets and keeps its connections: each has a place, a goroutine that
// dials, watches over what it got, and dials again when that has ended.

const (
	// leastBackOff is how long an address is left alone after a first failure.
	leastBackOff = 25 * time.Millisecond
	// mostByDefault bounds the default size with TLS: each further connection makes
	// large messages faster, but takes from small ones the company to be written with.
	mostByDefault = 4
	// leastLife is how long a connection must last for its address not to count
	// as failing: a server that ends each at once must not be dialled in a loop.
	leastLife = time.Second
)

// An endpoint is an address and how it fared. Guarded by the pool's mu, as is the
// list of them: nothing keeps an index into it.
type endpoint struct {
	addr     string
	conns    int            // ready ones
	moving   int            // those of them that are to be replaced by connections elsewhere
	dials    int            // under way
	failures int            // in a row
	until    time.Time      // it is left alone until then
	hopeless bool           // time will not cure what the last dial met
	removed  bool           // the Resolver no longer has it
	err      error          // of the last dial
	begun    uint64         // dials
	past     TransportStats // of connections that have ended, and of dials
}

// NewPool returns a Pool of connections to the servers at addrs, which must be
// equivalent: calls go to whichever is there. It dials nothing before the first
// call; see Dial for addresses and cfg, and Config.Pool for the Pool's settings.
// The Pool is to be closed in the end.
func NewPool(cfg *Config, addrs ...string) *Pool {
	p := &Pool{cfg: cfg.inRole(asDialler).withDefaults(), moving: make(chan struct{}, 1),
		open: make(map[*poolConn]struct{}), changed: make(chan struct{})}
	p.cfg.metrics = newMetrics(cfg)
	for _, addr := range addrs {
		p.endpoints = append(p.endpoints, p.newEndpoint(addr))
	}
	p.share()
	switch n := len(addrs); {
	case n > 0:
		p.turn = rand.IntN(n) // many processes shall not all begin with the same one
	case p.cfg.Pool.Resolver == nil:
		p.lastErr = &Error{Code: InvalidArgument, Op: "dial", Message: "the Pool has no address", notRun: true}
	}
	p.ready.Store(new([]*poolConn))
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.draining, p.abort = context.WithCancel(context.Background())
	return p
}

func (p *Pool) newEndpoint(addr string) *endpoint {
	p.cfg.metrics.count(schemeOf(addr), func(*TransportStats) {}) // it is in Stats from the beginning
	return &endpoint{addr: addr, past: TransportStats{Transport: schemeOf(addr)}}
}

// share works out how many connections there may be, in all and to each address.
// Called with mu held.
func (p *Pool) share() {
	n := len(p.endpoints)
	if p.size = p.cfg.Pool.Size; p.size <= 0 {
		if p.size = 1; p.cfg.hasTLS() {
			p.size = min(runtime.GOMAXPROCS(0), mostByDefault)
		}
		p.size = max(p.size, n)
	}
	p.perEndpoint = (p.size + n - 1) / max(n, 1)
	p.spread.Store(n > 1)
}

// addPlace starts a place, unless there are enough. Called with mu held.
func (p *Pool) addPlace() {
	if p.places >= p.size || len(p.endpoints) == 0 || p.ctx.Err() != nil {
		return
	}
	p.places++
	p.connecting++
	p.growth()
	p.wg.Go(p.place)
}

// growth works out mayGrow. Called with mu held.
func (p *Pool) growth() {
	p.mayGrow.Store(p.connecting == 0 && p.places < p.size && p.ctx.Err() == nil)
}

// tell has those who wait look again. Called with mu held.
func (p *Pool) tell() {
	p.growth()
	close(p.changed)
	p.changed = make(chan struct{})
}

// place keeps a connection until it is idle or the Pool ends.
func (p *Pool) place() {
	pc, counted := p.connect(nil), true
	for pc != nil {
		switch p.watch(pc) {
		case connOld:
			if p.surplus(pc) {
				counted = false
				break
			}
			if next := p.connect(pc); next != nil {
				p.drain(pc)
				pc = next
			}
			continue // when it has gone meanwhile, watch says so
		case connGone:
			p.remove(pc, true)
			p.drain(pc)
			pc = p.connect(nil)
			continue
		}
		p.remove(pc, false) // idle, or the end
		p.drain(pc)
		break
	}
	p.mu.Lock()
	if counted {
		p.places--
	}
	if pc == nil {
		p.connecting--
	}
	p.tell()
	p.mu.Unlock()
}

// connect dials until there is a connection for a place that has none, or has
// the old one. It returns nil when the Pool ends, when old has gone, and when
// nobody has waited for a connection for IdleTime. A place without one counts in
// connecting meanwhile.
func (p *Pool) connect(old *poolConn) *poolConn {
	var gone chan struct{}
	if old != nil {
		gone = old.gone
	}
	wanted := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if p.waiting > 0 {
			wanted = time.Now()
		}
		if p.ctx.Err() != nil || old != nil && old.away.Load() || old == nil && time.Since(wanted) > p.cfg.Pool.IdleTime {
			return nil
		}
		e, wait := p.choose(old)
		if e == nil {
			changed := p.changed
			p.mu.Unlock()
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
			case <-changed:
			case <-gone:
			case <-p.ctx.Done():
			}
			timer.Stop()
			p.mu.Lock()
			continue
		}
		e.dials++
		e.begun++
		p.dials++
		p.mu.Unlock()
		conn, err := Dial(p.ctx, e.addr, p.cfg)
		var pc *poolConn
		if err == nil {
			pc = &poolConn{conn: conn, at: e, since: time.Now(), gone: make(chan struct{}), move: make(chan struct{})}
			conn.whenRefusing(func() { pc.away.Store(true); close(pc.gone) })
		}
		p.mu.Lock()
		e.dials--
		e.err = err
		if err == nil {
			p.add(pc, old)
			return pc
		}
		if p.ctx.Err() == nil {
			p.dialErrors++
			p.lastErr = err
			e.past.ConnsFailed.add(CodeOf(err), 1)
			switch CodeOf(err) {
			case InvalidArgument, Unimplemented, PermissionDenied, Unauthenticated:
				e.hopeless = true
			default:
				e.hopeless = false
			}
			p.backOff(e)
			p.tell()
		}
	}
}

// choose returns the address that a place dials next: of those that may have a
// further connection and are not left alone, the one with the fewest. When there
// is none, it returns how long to wait, or until something changes. Whether a
// failing one is back is tried by one place at a time. Called with mu held.
func (p *Pool) choose(old *poolConn) (best *endpoint, wait time.Duration) {
	now, least := time.Now(), 0
	wait = p.cfg.Pool.MaxBackOff
	for i := range p.endpoints {
		e := p.endpoints[(p.turn+i)%len(p.endpoints)]
		n := e.conns + e.dials
		if old != nil && old.at == e {
			n--
		}
		switch {
		case n >= p.perEndpoint, e.failures > 0 && e.dials > 0:
		case e.until.After(now):
			wait = min(wait, e.until.Sub(now))
		case best == nil || n < least || n == least && e.failures < best.failures:
			best, least = e, n
		}
	}
	if best != nil {
		p.turn = (p.turn + 1) % len(p.endpoints)
	}
	return best, wait
}

// backOff has an address left alone for twice as long as the last time, less up
// to a half at random, so that many processes do not come back at once. Called
// with mu held.
func (p *Pool) backOff(e *endpoint) {
	e.failures++
	d := min(leastBackOff<<min(e.failures-1, 30), p.cfg.Pool.MaxBackOff)
	e.until = time.Now().Add(d - time.Duration(rand.Int64N(int64(d)/2+1)))
}

// hopeless says that no address can be dialled, for reasons that time does not
// cure. Called with mu held.
func (p *Pool) hopeless() bool {
	if len(p.endpoints) == 0 && p.resolving {
		return false
	}
	for _, e := range p.endpoints {
		if !e.hopeless {
			return false
		}
	}
	return true
}

// add has a connection take new work, in place of old, which may be nil. Called
// with mu held.
func (p *Pool) add(pc, old *poolConn) {
	p.open[pc] = struct{}{}
	pc.at.conns++
	pc.at.past.ConnsOpened++
	pc.at.until, pc.at.hopeless, p.lastErr = time.Time{}, false, nil
	ready := slices.Clone(*p.ready.Load())
	if old == nil {
		p.connecting--
		ready = append(ready, pc)
	} else {
		p.leave(old)
		ready[slices.Index(ready, old)] = pc
	}
	p.ready.Store(&ready)
	p.rebalance() // the addresses may have changed during the dial
	p.tell()
}

// remove gives a connection no more work. Its place then has none: connecting
// says that it is to get another.
func (p *Pool) remove(pc *poolConn, connecting bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leave(pc)
	ready := slices.DeleteFunc(slices.Clone(*p.ready.Load()), func(other *poolConn) bool { return other == pc })
	p.ready.Store(&ready)
	if connecting {
		p.connecting++
		if time.Since(pc.since) < leastLife {
			p.backOff(pc.at)
			p.lastErr = pc.conn.Err()
		}
	}
	p.tell()
}

// leave takes note that a connection takes no new work. Called with mu held.
func (p *Pool) leave(pc *poolConn) {
	pc.away.Store(true)
	pc.at.conns--
	if pc.moved {
		pc.at.moving--
	}
	if time.Since(pc.since) >= leastLife {
		pc.at.failures = 0
	}
}

// drain ends a connection that takes no new work when what it has is done.
func (p *Pool) drain(pc *poolConn) {
	p.wg.Go(func() {
		pc.conn.retire(p.draining)
		<-pc.conn.Done()
		p.mu.Lock()
		pc.at.past.addLast(pc.conn)
		delete(p.open, pc)
		p.mu.Unlock()
	})
}

// What watch finds.
const (
	connGone = iota // it refuses new work, or has ended
	connOld         // or its address is not to have it
	connIdle
	poolEnds
)

// looks is how often in IdleTime it is looked whether a connection is used.
const looks = 4

// watch waits until something is to be done about a connection.
func (p *Pool) watch(pc *poolConn) int {
	life := p.cfg.Pool.MaxAge
	life += time.Duration((rand.Float64() - 0.5) / 5 * float64(life))
	old, look := time.NewTimer(time.Until(pc.since.Add(life))), time.NewTicker(max(p.cfg.Pool.IdleTime/looks, 1))
	defer old.Stop()
	defer look.Stop()
	was, quiet := uint64(0), 0
	for {
		select {
		case <-pc.gone:
			return connGone
		case <-p.ctx.Done():
			return poolEnds
		case <-old.C:
			return connOld
		case <-pc.move:
			return connOld
		case <-look.C:
			if uses, busy := pc.uses(); busy || uses != was {
				was, quiet = uses, 0
			} else if quiet++; quiet == looks {
				return connIdle
			}
		}
	}
}

// uses counts what the connection was used for, either way, and reports whether
// it is used now.
func (pc *poolConn) uses() (n uint64, busy bool) {
	c := pc.conn
	c.out.Lock()
	defer c.out.Unlock()
	n = pc.streams.Load() + c.callsSent + c.callsServed + c.notes.sentMsgs + c.oneWay.handledMsgs
	return n, c.inUse() > 0 || c.servingCount.Load() > 0
}

// Shutdown ends the Pool in order: calls that run end, and so do streams and
// handlers of one-way messages; new calls, and those that wait for a connection,
// fail with an error that wraps net.ErrClosed and of which NotRun is true. Then
// the connections are closed. When ctx ends first they are closed at once, as by
// Close, and the context's error is returned.
func (p *Pool) Shutdown(ctx context.Context) error {
	p.end()
	over := make(chan struct{})
	go func() { p.wg.Wait(); close(over) }()
	select {
	case <-over:
		return nil
	case <-ctx.Done():
	}
	select {
	case <-over:
		return nil
	default:
	}
	p.abort()
	<-over
	return ctx.Err()
}

// Close ends the Pool at once: every connection is closed as by Conn.Close, at
// the same time, and calls that run fail. Nothing of the Pool is left when it
// returns, which is always nil.
func (p *Pool) Close() error {
	p.end()
	p.abort()
	p.wg.Wait()
	return nil
}

// end has places end and nothing new begin.
func (p *Pool) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stop()
	p.tell()
}

// PoolStats is a snapshot of a Pool's counters. Those of Stats are the sums over
// all connections, open or not.
type PoolStats struct {
	Stats
	Open     int // connections that take new calls
	Draining int // those that do not, and have not ended
	Dialing  int // dials and handshakes under way
	Waiting  int // calls that wait for a connection
	InFlight int // calls and streams on connections

	Dials      uint64 // begun
	DialErrors uint64 // failed, for another reason than the Pool's end
	Retried    uint64 // times that a call or one-way message was tried on another connection

	Endpoints []EndpointStats // of the addresses that it has now

	Waits Histogram // how long calls waited for a connection, of those that had to, with and without success
}

// EndpointStats is a snapshot of the counters of one address of a Pool.
type EndpointStats struct {
	Addr           string
	TransportStats // of the connections to it, without Methods

	Dialing   int           // dials and handshakes under way
	Dials     uint64        // begun; ConnsFailed has those that failed
	Failures  int           // dials that failed, and connections that ended at once, since it last worked
	LeftAlone time.Duration // how long it is not dialled, from now on
	LastError string        // why the last dial failed, "" when it did not
}

// Stats returns the Pool's counters.
func (p *Pool) Stats() PoolStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := PoolStats{Stats: p.cfg.metrics.stats(), Open: len(*p.ready.Load()), Waiting: p.waiting,
		Dials: p.dials, DialErrors: p.dialErrors, Retried: p.retried.Load()}
	s.Waits.h.Merge(&p.waits.h)
	s.Draining = len(p.open) - s.Open
	at := make(map[*endpoint]*TransportStats, len(p.endpoints))
	for pc := range p.open {
		now := pc.conn.counters()
		s.InFlight += now.CallsInFlight + now.StreamsInFlight
		if at[pc.at] == nil {
			at[pc.at] = new(TransportStats)
		}
		at[pc.at].add(&now)
		at[pc.at].Conns++
	}
	for _, e := range p.endpoints {
		s.Dialing += e.dials
		one := EndpointStats{Addr: e.addr, TransportStats: e.past, Dialing: e.dials, Dials: e.begun,
			Failures: e.failures, LeftAlone: max(time.Until(e.until), 0)}
		if e.err != nil {
			one.LastError = e.err.Error()
		}
		if now := at[e]; now != nil {
			one.TransportStats.add(now)
		}
		s.Endpoints = append(s.Endpoints, one)
	}
	return s
}
