package plugwire

import (
	"cmp"
	"encoding/json"
	"iter"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/plugwire/plugwire/internal/histogram"
)

// Stats is a snapshot of counters: of a connection, or of all connections that a
// Server, Pool or Plugin has and has had. docs/METRICS.md says what each is for.
type Stats struct {
	TransportStats                  // the sums over all transports
	Transports     []TransportStats // of each transport that was used, by name

	CertErrors uint64 // failed attempts to read changed certificate files, of the whole process; see TLSConfig
}

// TransportStats are the counters of the connections over one transport. What
// counts things that are there now is an int, what only grows a uint64.
type TransportStats struct {
	Transport string // the scheme of the addresses; of sums, those of all, with commas

	Conns       int        // open connections
	ConnsOpened uint64     // those that came through the handshake
	ConnsFailed CodeCounts // dials and handshakes that failed, and connections not let in
	ConnsBroken CodeCounts // connections that ended otherwise than by Close or Shutdown on either side
	Refused     uint64     // of a Server: those of ConnsFailed that were not let in for who they are or what they could not show
	Restarts    uint64     // of a Plugin: processes that took the place of one that had ended

	CallsInFlight   int // calls of this side
	StreamsInFlight int // streams that this side opened
	CallsServing    int // calls of the other side, from when they are known not to end at once
	StreamsServing  int // streams of the other side

	CallsSent       uint64 // calls that this side made
	CallsServed     uint64 // calls of the other side that ended here
	StreamsOpened   uint64 // streams that this side opened
	StreamsServed   uint64 // streams of the other side that ended here
	OneWaySent      uint64 // one-way messages that this side sent
	OneWayHandled   uint64 // those of the other side whose handlers have returned, but for up to 31 ahead of one that waits
	MessagesWritten uint64 // requests, replies, one-way messages and messages of streams
	MessagesRead    uint64 // the same; a request counts when its call has ended, a one-way message when it is handled

	BytesWritten uint64
	BytesRead    uint64
	Writes       uint64     // write calls that took bytes
	Reads        uint64     // read calls that gave bytes
	WriteSizes   WriteSizes // Writes, by how many bytes
	Stalls       Stalls

	Methods []MethodStats // with Config.Metrics, by name; of a connection that a Server, Pool or Plugin has, they are in its Stats
}

// WriteSizes counts write calls by the bytes that they took, which tells how many
// messages go out together: those at index i took less than 64<<i, and not less
// than half of that; the last one has all larger ones too.
type WriteSizes [14]uint64

// Stalls counts how often somebody had to wait for the other side, or the system,
// to take more.
type Stalls struct {
	Calls   uint64 // calls and streams that waited for a place in MaxCalls or MaxRequestBytes of the other side
	OneWay  uint64 // one-way messages that waited for its OneWayWindow
	Streams uint64 // messages that waited for its StreamWindow
	Writes  uint64 // any of them that waited until the system took what was to be written before
}

// MethodStats are the counters of one method, as a call or a stream. A call that a
// Pool or Plugin makes again counts again. A caller can have its reply a moment
// before its call counts as ended here.
type MethodStats struct {
	Method string // "": methods that the serving side has no name for, and those beyond the first 256
	Served bool   // the other side called; else this one
	Stream bool

	InFlight int        // those that run; served calls as CallsServing counts them
	Ended    CodeCounts // how they ended
	// Latency is how long those took that have ended: at the caller from the
	// beginning of Do until the ending came, which includes all waiting; at the
	// server from when the request was read until its reply leaves, together with
	// those of others that were read with it.
	Latency Histogram
}

// CodeCounts are counts by Code: index it by one of the canonical codes. The last
// one counts all others.
type CodeCounts [len(codeNames) + 1]uint64

// add counts a code n times.
func (c *CodeCounts) add(code Code, n uint64) { c[min(int(code), len(c)-1)] += n }

// All returns the names of the codes that occurred, "other" for the last, with
// their counts.
func (c CodeCounts) All() iter.Seq2[string, uint64] {
	return func(yield func(string, uint64) bool) {
		for i, n := range c {
			name := "other"
			if i < len(codeNames) {
				name = codeNames[i]
			}
			if n > 0 && !yield(name, n) {
				return
			}
		}
	}
}

// Sum returns the sum of the counts.
func (c CodeCounts) Sum() (sum uint64) {
	for _, n := range c {
		sum += n
	}
	return sum
}

// MarshalJSON writes an object that has the names of the codes that occurred.
func (c CodeCounts) MarshalJSON() ([]byte, error) {
	counts := make(map[string]uint64)
	for name, n := range c.All() {
		counts[name] = n
	}
	return json.Marshal(counts)
}

// A Histogram holds how often durations occurred, in buckets that are at most 1/32
// of the duration wide.
type Histogram struct{ h histogram.Histogram }

// Count returns the number of durations.
func (h Histogram) Count() uint64 { return h.h.Count() }

// Sum returns their sum, which is exact.
func (h Histogram) Sum() time.Duration { return h.h.Sum() }

// Quantile returns the duration that a part q of all does not exceed: 0.5 gives
// the median, 0.999 what one in a thousand exceeds. It is off by less than 2 %.
func (h Histogram) Quantile(q float64) time.Duration { return h.h.Quantile(q) }

// Below returns how many durations were shorter than d, which is exact when d is a
// power of two nanoseconds.
func (h Histogram) Below(d time.Duration) uint64 { return h.h.Below(d) }

// MarshalJSON writes an object with the count, the sum and some quantiles, in seconds.
func (h Histogram) MarshalJSON() ([]byte, error) {
	at := func(q float64) float64 { return h.Quantile(q).Seconds() }
	return json.Marshal(map[string]any{"Count": h.Count(), "Sum": h.Sum().Seconds(),
		"P50": at(0.5), "P90": at(0.9), "P99": at(0.99), "P999": at(0.999), "Max": at(1)})
}

// add adds the counters of t, but for Methods.
func (s *TransportStats) add(t *TransportStats) {
	s.Conns += t.Conns
	s.ConnsOpened += t.ConnsOpened
	addAll(s.ConnsFailed[:], t.ConnsFailed[:])
	addAll(s.ConnsBroken[:], t.ConnsBroken[:])
	s.Refused += t.Refused
	s.Restarts += t.Restarts
	s.CallsInFlight += t.CallsInFlight
	s.StreamsInFlight += t.StreamsInFlight
	s.CallsServing += t.CallsServing
	s.StreamsServing += t.StreamsServing
	s.CallsSent += t.CallsSent
	s.CallsServed += t.CallsServed
	s.StreamsOpened += t.StreamsOpened
	s.StreamsServed += t.StreamsServed
	s.OneWaySent += t.OneWaySent
	s.OneWayHandled += t.OneWayHandled
	s.MessagesWritten += t.MessagesWritten
	s.MessagesRead += t.MessagesRead
	s.BytesWritten += t.BytesWritten
	s.BytesRead += t.BytesRead
	s.Writes += t.Writes
	s.Reads += t.Reads
	addAll(s.WriteSizes[:], t.WriteSizes[:])
	s.Stalls.Calls += t.Stalls.Calls
	s.Stalls.OneWay += t.Stalls.OneWay
	s.Stalls.Streams += t.Stalls.Streams
	s.Stalls.Writes += t.Stalls.Writes
}

func addAll(to, from []uint64) {
	for i, n := range from {
		to[i] += n
	}
}

// newStats returns the Stats that have these transports.
func newStats(transports []TransportStats) Stats {
	slices.SortFunc(transports, func(a, b TransportStats) int { return cmp.Compare(a.Transport, b.Transport) })
	s := Stats{Transports: transports, CertErrors: certErrors.Load()}
	methods := make(map[methodKey]*MethodStats)
	var names []string
	for i := range transports {
		t := &transports[i]
		names = append(names, t.Transport)
		s.add(t)
		for j := range t.Methods {
			t.Methods[j].addTo(methods)
		}
	}
	s.Transport = strings.Join(names, ",")
	s.Methods = sortedMethods(methods)
	return s
}

// addTo adds the counters to those of the same method.
func (m *MethodStats) addTo(methods map[methodKey]*MethodStats) {
	key := methodKey{m.Method, m.Served, m.Stream}
	sum := methods[key]
	if sum == nil {
		sum = &MethodStats{Method: m.Method, Served: m.Served, Stream: m.Stream}
		methods[key] = sum
	}
	sum.InFlight += m.InFlight
	addAll(sum.Ended[:], m.Ended[:])
	sum.Latency.h.Merge(&m.Latency.h)
}

func sortedMethods(methods map[methodKey]*MethodStats) []MethodStats {
	sorted := make([]MethodStats, 0, len(methods))
	for _, m := range methods {
		sorted = append(sorted, *m)
	}
	key := func(m *MethodStats) string {
		sort := byte(0)
		if m.Served {
			sort = 2
		}
		if m.Stream {
			sort++
		}
		return m.Method + "\x00" + string(sort)
	}
	slices.SortFunc(sorted, func(a, b MethodStats) int { return strings.Compare(key(&a), key(&b)) })
	return sorted
}

// certErrors is Stats.CertErrors.
var certErrors atomic.Uint64

// Stats returns the connection's counters.
func (c *Conn) Stats() Stats {
	t := c.counters()
	t.ConnsOpened = 1
	select {
	case <-c.done:
	default:
		t.Conns = 1
	}
	if c.shard != nil && c.cfg.metrics == nil { // nobody else's
		methods := make(map[methodKey]*MethodStats)
		c.shard.collect(methods)
		c.collectInFlight(methods)
		t.Methods = sortedMethods(methods)
	}
	return newStats([]TransportStats{t})
}

// counters returns what the connection itself counts.
func (c *Conn) counters() TransportStats {
	c.out.Lock()
	defer c.out.Unlock()
	t := TransportStats{Transport: c.peer.Transport,
		CallsInFlight: c.inUse() - int(c.streamsOpen), StreamsInFlight: int(c.streamsOpen),
		StreamsServing: int(c.streamsTaken.Load() - c.streamsServed),
		CallsSent:      c.callsSent, CallsServed: c.callsServed,
		StreamsOpened: c.streamsOpened, StreamsServed: c.streamsServed,
		OneWaySent: c.notes.sentMsgs, OneWayHandled: c.oneWay.handledMsgs,
		BytesWritten: c.out.Sent(), Writes: c.out.Writes(), WriteSizes: c.out.Sizes(),
		BytesRead: c.readBytes.Load(), Reads: c.reads.Load(), Stalls: c.stalls}
	t.CallsServing = max(int(c.servingCount.Load())-t.StreamsServing, 0)
	t.MessagesWritten = t.CallsSent + t.CallsServed + t.OneWaySent + c.streamSent
	t.MessagesRead = c.callsEnded + t.CallsServed + t.OneWayHandled + c.streamGot.Load()
	t.Stalls.Writes = c.out.Stalls()
	if c.life.over {
		t.CallsInFlight, t.StreamsInFlight, t.CallsServing, t.StreamsServing = 0, 0, 0, 0
	}
	return t
}
