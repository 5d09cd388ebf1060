package plugwire

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"
)

// How a Pool follows its Resolver.

var errNoAddress = errors.New("the resolver knows no address")

// resolve has the Resolver asked, from now on. Called with mu held.
func (p *Pool) resolve() {
	if p.resolving || p.cfg.Pool.Resolver == nil || p.ctx.Err() != nil {
		return
	}
	p.resolving = true
	p.wg.Go(p.watchAddresses)
}

// watchAddresses calls Watch until the Pool ends, with growing pauses while it fails.
func (p *Pool) watchAddresses() {
	failures := 0
	var heard atomic.Bool
	update := func(addrs []string) {
		heard.Store(true)
		p.update(slices.Clone(addrs))
	}
	for {
		err := p.cfg.Pool.Resolver.Watch(p.ctx, update)
		if p.ctx.Err() != nil {
			return
		}
		if err != nil {
			p.unresolved(err)
		}
		if heard.Swap(false) {
			failures = 0
		}
		d := min(leastBackOff<<min(failures, 30), p.cfg.Pool.MaxBackOff)
		failures++
		sleep(p.ctx, d-time.Duration(rand.Int64N(int64(d)/2+1)))
	}
}

// unresolved takes note of why there may be no address, for those who wait.
func (p *Pool) unresolved(err error) {
	p.mu.Lock()
	if len(p.endpoints) == 0 {
		p.lastErr = &Error{Code: Unavailable, Op: "dial", Message: "no address", Err: err, notRun: true}
	}
	p.mu.Unlock()
	if p.cfg.Logger != nil {
		p.cfg.Logger.Warn("plugwire: the resolver failed", "err", err)
	}
}

// update makes addrs the Pool's addresses. Those that it has already keep their
// connections and what is known of them.
func (p *Pool) update(addrs []string) {
	if len(addrs) == 0 {
		p.unresolved(errNoAddress)
		return
	}
	slices.Sort(addrs)
	addrs = slices.Compact(addrs)
	p.mu.Lock()
	defer p.mu.Unlock()
	var next []*endpoint
	for _, addr := range addrs {
		i := slices.IndexFunc(p.endpoints, func(e *endpoint) bool { return e.addr == addr })
		if i >= 0 {
			next = append(next, p.endpoints[i])
		} else {
			next = append(next, p.newEndpoint(addr))
		}
	}
	for _, e := range p.endpoints {
		e.removed = !slices.Contains(next, e)
	}
	if len(p.endpoints) == 0 {
		p.lastErr = nil
		p.turn = rand.IntN(len(next))
	}
	p.endpoints = next
	p.share()
	p.rebalance()
	p.tell()
}

// rebalance has connections moved away from addresses that have too many of them,
// or are not to have any. Called with mu held.
func (p *Pool) rebalance() {
	for _, pc := range *p.ready.Load() {
		most := p.perEndpoint
		if pc.at.removed {
			most = 0
		}
		if pc.moved || pc.at.conns-pc.at.moving <= most {
			continue
		}
		pc.moved = true
		pc.at.moving++
		close(pc.move)
	}
}

// surplus reports whether a place is one too many, now that there are fewer
// addresses. Then it no longer counts, and is to end.
func (p *Pool) surplus(pc *poolConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !pc.moved || p.places <= p.size {
		return false
	}
	p.places--
	return true
}
