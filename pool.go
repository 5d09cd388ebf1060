package plugwire

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A Pool makes calls over connections that it opens when they are needed, keeps
// while they are used, and replaces when they end. All methods are safe for
// concurrent use. Each call goes to the connection with the fewest calls in flight.
//
// A call is run again, on another connection, when it has failed and cannot have
// run (see NotRun): its connection broke or drains, or the other side turned it
// away. One that may have run is only run again when its connection broke and
// Call.Idempotent says that it may be. The context and PoolConfig.MaxTries bound that.
//
// While there is no connection, callers wait, at most for PoolConfig.MaxWait, and
// then fail with Unavailable and the last dial's error inside; NotRun is true of
// that. When the last attempt at every address failed for a reason that time does
// not cure (an address that cannot be, a peer that refuses this user), they fail
// at once with that reason's code. Dialling goes on when a caller gives up.
//
// Whether the other side still lives is seen by Config.KeepAlive, as on any
// connection: over Unix sockets, where the kernel tells of a peer's end, it has
// to be set for peers that may hang.
type Pool struct {
	cfg *Config

	ready   atomic.Pointer[[]*poolConn] // those that take new work; replaced as a whole under mu
	notes   atomic.Pointer[poolConn]    // which one-way messages go to
	moving  chan struct{}               // holds a token while notes is changed, which may take long
	mayGrow atomic.Bool                 // a further connection may be opened
	spread  atomic.Bool                 // ties go to connections at random: there are several addresses
	retried atomic.Uint64

	// ctx ends when the pool is closed or shut down: nothing is dialled any more.
	// draining ends when connections that drain are to be closed at once.
	ctx, draining context.Context
	stop, abort   context.CancelFunc
	wg            sync.WaitGroup // places, and connections that drain

	// mu is not held while anything waits. A connection's out lock may be taken
	// under it, never the other way around.
	mu          sync.Mutex
	endpoints   []*endpoint
	perEndpoint int
	size        int                    // as many places as there may be
	resolving   bool                   // Resolver has been asked
	turn        int                    // with whom choose begins
	open        map[*poolConn]struct{} // ready or draining
	places      int                    // goroutines that each keep a connection
	connecting  int                    // those of them that have none
	waiting     int
	waits       Histogram
	dials       uint64
	dialErrors  uint64
	lastErr     error
	changed     chan struct{} // closed and replaced when a waiter has reason to look again
}

var _ Caller = (*Pool)(nil)

// PoolConfig holds the settings of a Pool.
type PoolConfig struct {
	// Size is how many connections take calls at most; those that drain do not
	// count. Default: with Config.TLS set as many as GOMAXPROCS, at most 4, for
	// encrypting takes a processor, else 1, and at least one for each address. Small
	// calls are fastest on one, where many are written together. Each address gets
	// an equal share, rounded up, also while others fail.
	Size int

	MaxWait    time.Duration // how long a call waits for a connection; default 10 s
	MaxWaiters int           // how many calls may wait at once, beyond which they fail with ResourceExhausted; default 16384
	MaxTries   int           // how often a call is begun, in all; default 4

	IdleTime   time.Duration // a connection that nobody used for so long is closed; default 5 min
	MaxAge     time.Duration // a connection older than that, give or take a tenth, is replaced and drains; default none
	MaxBackOff time.Duration // an address that fails is left alone for a time that grows to this one; default 5 s

	// Resolver says where calls may go, in place of addresses that never change:
	// see package resolver. Those given to NewPool serve until it has answered. Nil: there is none.
	Resolver Resolver
}

// A Resolver finds out the addresses of a Pool's servers.
//
// Watch calls update with all of them, once they are known and again when they have
// changed, until ctx ends. When it fails it returns the error: the Pool goes on with
// the addresses that it has, also when it is told of none at all, and calls Watch
// again after a growing time. update does not wait and keeps nothing. A Pool calls
// Watch when it first needs a connection, and never two at a time.
//
// Connections to an address that is no longer there end, when they have been
// replaced, as soon as their calls have ended.
type Resolver interface {
	Watch(ctx context.Context, update func(addrs []string)) error
}

// Defaults of PoolConfig.
const (
	defaultMaxWait    = 10 * time.Second
	defaultMaxWaiters = 16384
	defaultMaxTries   = 4
	defaultIdleTime   = 5 * time.Minute
	defaultMaxBackOff = 5 * time.Second
)

func (c *PoolConfig) setDefaults(duration func(p *time.Duration, def time.Duration)) {
	duration(&c.MaxWait, defaultMaxWait)
	duration(&c.IdleTime, defaultIdleTime)
	duration(&c.MaxAge, noTimeout)
	duration(&c.MaxBackOff, defaultMaxBackOff)
	number := func(p *int, def int) {
		switch {
		case *p == 0:
			*p = def
		case *p < 0:
			*p = maxWireLen
		}
	}
	number(&c.MaxWaiters, defaultMaxWaiters)
	number(&c.MaxTries, defaultMaxTries)
}

// A poolConn is a connection of a Pool.
type poolConn struct {
	conn    *Conn
	at      *endpoint
	since   time.Time
	away    atomic.Bool   // takes no new work
	gone    chan struct{} // closed when the connection refuses new work
	streams atomic.Uint64 // that were opened
	moved   bool          // move is closed; guarded by mu
	move    chan struct{} // closed when its place should have a connection to another address
}

// lookAtAll is the number of connections above which two of them are looked at
// rather than all.
const lookAtAll = 8

// pick returns the connection with the fewest calls in flight, or for a stream
// the fewest streams too, that has not been tried; nil when there is none.
func (p *Pool) pick(t *tries, stream bool) *poolConn {
	ready := *p.ready.Load()
	n := len(ready)
	if n > lookAtAll {
		i := rand.IntN(n)
		a, b := ready[i], ready[(i+1+rand.IntN(n-1))%n]
		if a.usable(t) && b.usable(t) {
			if b.load(stream) < a.load(stream) {
				a = b
			}
			return a
		}
	}
	first := 0
	if n > 1 && p.spread.Load() {
		first = rand.IntN(n)
	}
	var best *poolConn
	least := 0
	for i := range n {
		pc := ready[(first+i)%n]
		if !pc.usable(t) {
			continue
		}
		if n == 1 {
			best = pc
			break
		}
		if load := pc.load(stream); best == nil || load < least {
			best, least = pc, load
		}
	}
	return best
}

func (pc *poolConn) usable(t *tries) bool {
	return !pc.away.Load() && (len(t.conns) == 0 || !slices.Contains(t.conns, pc))
}

// load is how much waits for an answer, or for its turn: calls that were given up
// count until the other side has ended them, so that a connection that stalls
// does not look idle.
func (pc *poolConn) load(stream bool) int {
	n := int(pc.conn.expecting.Load())
	if stream {
		pc.conn.out.Lock()
		n += pc.conn.inUse()
		pc.conn.out.Unlock()
	}
	return n
}

// tries is what is known of a call that has been begun before.
type tries struct {
	n     int
	conns []*poolConn // where
	err   error       // how the last one ended
	ran   bool        // it may have run
}

// errNoOther says that there are connections, but none that was not tried.
var errNoOther = &Error{Code: Unavailable, Message: "no other connection"}

// again decides whether a call that has failed on pc is run on another connection.
// What an Unimplemented call or an invalid one is told will be the same everywhere.
func (p *Pool) again(ctx context.Context, t *tries, pc *poolConn, idempotent bool, err error) bool {
	code := CodeOf(err)
	switch {
	case NotRun(err):
		if code == InvalidArgument || code == Unimplemented || code == Canceled || code == DeadlineExceeded {
			return false
		}
	case !idempotent || code != Unavailable || !pc.conn.ended.Load(): // else the other side has answered
		return false
	default:
		t.ran = true
	}
	if t.n++; t.n >= p.cfg.Pool.MaxTries || ctx.Err() != nil {
		return false
	}
	t.conns, t.err = append(t.conns, pc), err
	p.retried.Add(1)
	return true
}

// ended is the error that the caller of a call gets.
func ended(err error, method string, ran bool) error {
	if ran && NotRun(err) { // but an earlier attempt has, perhaps
		return &Error{Code: CodeOf(err), Op: "call", Addr: method, Err: err}
	}
	return err
}

// Call calls a method of the other side; see Conn.Call.
func (p *Pool) Call(ctx context.Context, method string, req []byte) ([]byte, error) {
	call := Call{Method: method, Request: req}
	if err := p.Do(ctx, &call); err != nil {
		return nil, err
	}
	return call.Reply, nil
}

// Do makes the call that call describes; see Conn.Do. Nothing is appended to
// Call.Reply by attempts that fail.
func (p *Pool) Do(ctx context.Context, call *Call) error {
	var t tries
	have := len(call.Reply)
	for {
		pc, err := p.acquire(ctx, &t, call.Method, false)
		switch {
		case err == error(errNoOther):
			return ended(t.err, call.Method, t.ran)
		case err != nil:
			return ended(err, call.Method, t.ran)
		}
		if err = pc.conn.Do(ctx, call); err == nil {
			return nil
		}
		call.Reply = call.Reply[:have]
		if !p.again(ctx, &t, pc, call.Idempotent, err) {
			return ended(err, call.Method, t.ran)
		}
	}
}

// DoAll makes all the calls at the same time; see Conn.DoAll. They go over one
// connection, except those that are run again.
func (p *Pool) DoAll(ctx context.Context, calls []*Call) error {
	if len(calls) == 0 {
		return nil
	}
	var t tries
	var ran map[*Call]bool
	for rest := calls; len(rest) > 0; {
		pc, err := p.acquire(ctx, &t, rest[0].Method, false)
		if err != nil {
			for _, c := range rest {
				if err != error(errNoOther) { // else it keeps its own
					own := *err.(*Error)
					own.Addr, c.Err = c.Method, &own
				}
			}
			break
		}
		if pc.conn.DoAll(ctx, rest) == nil {
			break
		}
		var failed []*Call
		before := t // one attempt, for however many
		for _, c := range rest {
			one := before
			if c.Err == nil || !p.again(ctx, &one, pc, c.Idempotent, c.Err) {
				continue
			}
			if failed = append(failed, c); one.ran {
				if ran == nil {
					ran = make(map[*Call]bool)
				}
				ran[c] = true
			}
			one.ran = false
			t = one
		}
		rest = failed
	}
	for c := range ran {
		c.Err = ended(c.Err, c.Method, true)
	}
	for _, c := range calls {
		if c.Err != nil {
			return c.Err
		}
	}
	return nil
}

// Notify sends a one-way message; see Conn.Notify. All one-way messages of a Pool
// go over one connection as long as that takes them, and when it drains, over
// the next one only when those before have been handled: so they are handled in
// order. When the connection breaks, those that were not yet handled are lost.
func (p *Pool) Notify(ctx context.Context, method string, msg []byte) error {
	for n := 1; ; {
		pc := p.notes.Load()
		if pc == nil || pc.away.Load() {
			var err error
			if pc, err = p.moveNotes(ctx, method); err != nil {
				return err
			}
		}
		err := pc.conn.notify(ctx, method, msg, true)
		switch {
		case err == error(errMoved): // the Pool's own doing is no try
		case err == nil || !NotRun(err) || !pc.away.Load() || ctx.Err() != nil || n >= p.cfg.Pool.MaxTries:
			return err
		default:
			n++
		}
		p.retried.Add(1)
	}
}

// moveNotes finds a connection for one-way messages, when all that the last one
// took have been handled or lost.
func (p *Pool) moveNotes(ctx context.Context, method string) (*poolConn, error) {
	select {
	case p.moving <- struct{}{}:
		defer func() { <-p.moving }()
	case <-ctx.Done():
		return nil, callError(ctx.Err(), method, true)
	}
	old := p.notes.Load()
	if old != nil && !old.away.Load() {
		return old, nil
	}
	if old != nil {
		old.conn.moveOn(ctx)
		if err := ctx.Err(); err != nil {
			return nil, callError(err, method, true)
		}
	}
	pc, err := p.acquire(ctx, &tries{}, method, false)
	if err == nil {
		p.notes.Store(pc)
	}
	return pc, err
}

// OpenStream opens a stream on the connection with the fewest calls and streams;
// see Conn.OpenStream. A stream is never moved: when its connection breaks before
// the other side has heard of it, its methods fail with errors of which NotRun is true.
// One that stays open keeps its connection open, also one that is to be replaced.
func (p *Pool) OpenStream(ctx context.Context, method string) (*Stream, error) {
	var t tries
	for {
		pc, err := p.acquire(ctx, &t, method, true)
		if err == error(errNoOther) {
			return nil, t.err
		} else if err != nil {
			return nil, err
		}
		s, err := pc.conn.OpenStream(ctx, method)
		if err == nil {
			pc.streams.Add(1)
			return s, nil
		}
		if !p.again(ctx, &t, pc, false, err) {
			return nil, err
		}
	}
}

// acquire returns a connection on which the call has not been tried, and waits
// for one when there are none at all. Where even the best is busy it has a further
// one opened, by and by.
func (p *Pool) acquire(ctx context.Context, t *tries, method string, stream bool) (*poolConn, error) {
	pc := p.pick(t, stream)
	if pc == nil {
		return p.wait(ctx, t, method, stream)
	}
	if p.mayGrow.Load() && pc.load(stream) > 0 {
		p.mu.Lock()
		if p.connecting == 0 {
			p.addPlace()
		}
		p.mu.Unlock()
	}
	return pc, nil
}

// stagger is how long callers wait before a further address is tried beside
// those that do not answer.
const stagger = 250 * time.Millisecond

func (p *Pool) wait(ctx context.Context, t *tries, method string, stream bool) (*poolConn, error) {
	if err := ctx.Err(); err != nil {
		return nil, callError(err, method, true)
	}
	fail := func(code Code, message string, err error) error {
		return &Error{Code: code, Op: "call", Addr: method, Message: message, Err: err, notRun: true}
	}
	var timeout, slow <-chan time.Time
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if p.ctx.Err() != nil {
			return nil, fail(Unavailable, "the pool is closed", net.ErrClosed)
		}
		if pc := p.pick(t, stream); pc != nil {
			return pc, nil
		}
		if len(t.conns) > 0 && slices.ContainsFunc(*p.ready.Load(), func(pc *poolConn) bool { return !pc.away.Load() }) {
			return nil, errNoOther
		}
		p.resolve()
		if p.hopeless() {
			return nil, fail(CodeOf(p.lastErr), "no connection", p.lastErr)
		}
		if timeout == nil {
			if p.waiting >= p.cfg.Pool.MaxWaiters {
				return nil, fail(ResourceExhausted, "too many callers wait for a connection (PoolConfig.MaxWaiters)", p.lastErr)
			}
			p.waiting++
			began := time.Now()
			defer func() {
				p.waiting--
				p.waits.h.Add(time.Since(began), 1)
			}()
			timer, late := time.NewTimer(p.cfg.Pool.MaxWait), time.NewTicker(stagger)
			defer timer.Stop()
			defer late.Stop()
			timeout, slow = timer.C, late.C
		}
		if p.places == 0 {
			p.addPlace()
		}
		changed := p.changed
		p.mu.Unlock()
		late, over := false, false
		select {
		case <-changed:
		case <-slow:
			late = true
		case <-timeout:
			over = true
		case <-ctx.Done():
		}
		p.mu.Lock()
		switch err := ctx.Err(); {
		case err != nil && p.lastErr != nil:
			return nil, fail(CodeOf(err), "", fmt.Errorf("%w while there is no connection: %w", err, p.lastErr))
		case err != nil:
			return nil, callError(err, method, true)
		case over:
			return nil, fail(Unavailable, fmt.Sprintf("no connection within %v", p.cfg.Pool.MaxWait), p.lastErr)
		case late:
			p.addPlace()
		}
	}
}
