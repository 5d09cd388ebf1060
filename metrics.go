package plugwire

import (
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/plugwire/plugwire/internal/histogram"
)

// A meter has the counters of a Server, Pool or Plugin: what its connections do
// not count themselves, and what those counted that have ended. Its methods do
// nothing when it is nil, as it is for a connection of nobody.
type meter struct {
	methods bool // Config.Metrics

	// mu may be taken under a Pool's, and a connection's out lock under it.
	mu         sync.Mutex
	transports map[string]*transportMetrics
}

type transportMetrics struct {
	past   TransportStats
	open   map[*Conn]struct{}
	shards []*methodShard // connections are given them in turn
	turn   int
}

func newMetrics(cfg *Config) *meter {
	return &meter{methods: cfg != nil && cfg.Metrics, transports: make(map[string]*transportMetrics)}
}

// counted returns a copy of c, which may be nil, whose connections count together.
func (c *Config) counted() *Config {
	var d Config
	if c != nil {
		d = *c
	}
	d.metrics = newMetrics(&d)
	return &d
}

// of returns the counters of a transport. Called with mu held.
func (m *meter) of(transport string) *transportMetrics {
	t := m.transports[transport]
	if t == nil {
		t = &transportMetrics{past: TransportStats{Transport: transport}, open: make(map[*Conn]struct{})}
		m.transports[transport] = t
	}
	return t
}

// count has f change the counters of a transport.
func (m *meter) count(transport string, f func(*TransportStats)) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	f(&m.of(transport).past)
}

// failed counts a dial or handshake that failed.
func (m *meter) failed(transport string, err error) {
	m.count(transport, func(t *TransportStats) { t.ConnsFailed.add(CodeOf(err), 1) })
}

// join counts a connection as open, and says where it counts its calls.
func (m *meter) join(c *Conn) {
	if m == nil {
		if c.cfg.Metrics {
			c.shard = newMethodShard(newMethodNames())
		}
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.of(c.peer.Transport)
	t.open[c] = struct{}{}
	t.past.ConnsOpened++
	if !m.methods {
		return
	}
	if t.shards == nil {
		names := newMethodNames()
		for range min(runtime.GOMAXPROCS(0), maxShards) {
			t.shards = append(t.shards, newMethodShard(names))
		}
	}
	c.shard = t.shards[t.turn%len(t.shards)]
	t.turn++
}

// leave counts a connection as over.
func (m *meter) leave(c *Conn) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.of(c.peer.Transport)
	delete(t.open, c)
	t.past.addLast(c)
}

// addLast adds the counters of a connection that is over.
func (s *TransportStats) addLast(c *Conn) {
	last := c.counters()
	s.add(&last)
	if err := c.Err(); !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.EOF) {
		s.ConnsBroken.add(CodeOf(err), 1)
	}
}

// stats returns a snapshot.
func (m *meter) stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	transports := make([]TransportStats, 0, len(m.transports))
	for _, t := range m.transports {
		transports = append(transports, t.stats())
	}
	return newStats(transports)
}

func (t *transportMetrics) stats() TransportStats {
	sum := t.past
	methods := make(map[methodKey]*MethodStats)
	for _, s := range t.shards {
		s.collect(methods)
	}
	for c := range t.open {
		counters := c.counters()
		sum.add(&counters)
		if c.shard != nil {
			c.collectInFlight(methods)
		}
	}
	sum.Conns, sum.Methods = len(t.open), sortedMethods(methods)
	return sum
}

// Calls and streams by method. Counting one costs a look at the clock at its
// beginning and its end, and a few additions under the lock of a shard, which
// few connections share: those that end together take it once.

const (
	maxShards = 8
	// maxMethodNames is how many names of methods are told apart for each transport.
	maxMethodNames = 256
)

// A methodKey tells methods apart.
type methodKey struct {
	name           string
	served, stream bool
}

// methodNames are the names that the shards of a transport tell apart.
type methodNames struct {
	mu    sync.Mutex
	known map[string]struct{}
}

func newMethodNames() *methodNames { return &methodNames{known: make(map[string]struct{})} }

// admit returns name, or "" when there are too many.
func (n *methodNames) admit(name string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.known[name]; ok || name == "" {
		return name
	}
	if len(n.known) == maxMethodNames {
		return ""
	}
	name = strings.Clone(name)
	n.known[name] = struct{}{}
	return name
}

// A methodShard has the counters of the methods of some connections.
type methodShard struct {
	names *methodNames

	mu      sync.Mutex
	records map[methodKey]*methodRecord
}

// A methodRecord has the counters of one method. Its shard's mu guards them.
type methodRecord struct {
	key     methodKey
	ended   CodeCounts
	latency histogram.Histogram
}

// add counts n endings. Called with the shard's mu held.
func (r *methodRecord) add(code Code, took time.Duration, n uint64) {
	r.ended.add(code, n)
	r.latency.Add(took, n)
}

func newMethodShard(names *methodNames) *methodShard {
	return &methodShard{names: names, records: make(map[methodKey]*methodRecord)}
}

// record returns the counters of a method.
func (s *methodShard) record(key methodKey) *methodRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.records[key]; r != nil {
		return r
	}
	key.name = s.names.admit(key.name)
	r := s.records[key]
	if r == nil {
		r = &methodRecord{key: key}
		s.records[key] = r
	}
	return r
}

// add counts one ending.
func (s *methodShard) add(r *methodRecord, code Code, took time.Duration) {
	s.mu.Lock()
	r.add(code, took, 1)
	s.mu.Unlock()
}

// collect adds the counters to methods.
func (s *methodShard) collect(methods map[methodKey]*MethodStats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, r := range s.records {
		m := MethodStats{Method: key.name, Served: key.served, Stream: key.stream, Ended: r.ended}
		m.addTo(methods)
		methods[key].Latency.h.Merge(&r.latency)
	}
}

// collectInFlight adds what runs on the connection.
func (c *Conn) collectInFlight(methods map[methodKey]*MethodStats) {
	runs := func(r *methodRecord) {
		if r != nil {
			m := MethodStats{Method: r.key.name, Served: r.key.served, Stream: r.key.stream, InFlight: 1}
			m.addTo(methods)
		}
	}
	c.out.Lock()
	c.calls.all(func(_ uint32, e *outCall) { runs(e.record) })
	c.out.Unlock()
	c.serving.all(func(_ uint32, in *inCall) { runs(in.running.Load()) })
}

// started is where monotonic counts from.
var started = time.Now()

// monotonic reads the clock, in the cheapest way there is.
func monotonic() time.Duration { return time.Since(started) }

// begins is when a call begins, where that matters.
func (c *Conn) begins() time.Duration {
	if c.shard == nil {
		return 0
	}
	return monotonic()
}

// readAt is when the requests at hand were read, near enough.
func (rd *reader) readAt() time.Duration {
	if rd.requests == 0 {
		rd.requests = monotonic()
	}
	return rd.requests
}

// endedAt is when the endings at hand were taken in: since a handler ran, if one did.
func (rd *reader) endedAt() time.Duration {
	if rd.clock == 0 {
		rd.clock = monotonic()
	}
	return rd.clock
}

// callRecord returns the counters of a method of the other side. Called under out's lock.
func (c *Conn) callRecord(number uint16, name string) *methodRecord {
	if number == 0 {
		return c.shard.record(methodKey{name: name})
	}
	for int(number) >= len(c.callRecords) {
		c.callRecords = append(c.callRecords, nil)
	}
	r := c.callRecords[number]
	if r == nil {
		r = c.shard.record(methodKey{name: name})
		c.callRecords[number] = r
	}
	return r
}

// servedRecord returns the counters of a method of this side, m or nil. The
// holder of the reading role calls it.
func (c *Conn) servedRecord(m *method, stream bool) *methodRecord {
	if m == nil || m.number == 0 || (m.stream != nil) != stream {
		return c.shard.record(methodKey{served: true, stream: stream})
	}
	for int(m.number) >= len(c.servedRecords) {
		c.servedRecords = append(c.servedRecords, nil)
	}
	r := c.servedRecords[m.number]
	if r == nil {
		r = c.shard.record(methodKey{m.name, true, stream})
		c.servedRecords[m.number] = r
	}
	return r
}

// countUnsent counts a call or stream that failed before it had a slot.
func (c *Conn) countUnsent(name string, stream bool, began time.Duration, err error) {
	if c.shard != nil {
		c.shard.add(c.shard.record(methodKey{name: name, stream: stream}), CodeOf(err), monotonic()-began)
	}
}

// countEnded counts the ending of a call or stream for its opener, once. Called
// under out's lock.
func (c *Conn) countEnded(e *outCall, code Code) {
	if e.record != nil {
		c.shard.add(e.record, code, monotonic()-e.time)
		e.record = nil
	}
}

// servedCalls are calls of the other side that were served inline alike: they were
// read together, and their replies leave together.
type servedCalls struct {
	record *methodRecord
	code   Code
	began  time.Duration
	n      uint64
}

// addServed counts a call that was served inline. The holder of the reading role
// calls it, and countServed.
func (c *Conn) addServed(in *inCall, code Code) {
	if n := len(c.served); n > 0 {
		if last := &c.served[n-1]; last.record == in.record && last.code == code && last.began == in.began {
			last.n++
			return
		}
	}
	c.served = append(c.served, servedCalls{in.record, code, in.began, 1})
}

// countServed counts the calls whose replies are about to leave.
func (c *Conn) countServed() {
	if len(c.served) == 0 {
		return
	}
	now := monotonic()
	c.shard.mu.Lock()
	for i := range c.served {
		s := &c.served[i]
		s.record.add(s.code, now-s.began, s.n)
	}
	c.shard.mu.Unlock()
	c.served = c.served[:0]
}
