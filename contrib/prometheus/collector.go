// Package prometheus exports the counters of plugwire's servers, pools, plugins and
// connections to Prometheus:
//
//	registry.MustRegister(prometheus.NewCollector("greeter", plugin))
//
// docs/METRICS.md in plugwire has a table of all metrics. Those by method are there
// where Config.Metrics is set.
package prometheus

import (
	"time"

	"github.com/plugwire/plugwire"
	prom "github.com/prometheus/client_golang/prometheus"
)

// NewCollector returns a collector of the Stats of source, a *plugwire.Conn, Server,
// Pool or Plugin, which it takes anew at each scrape. name is the label "name" of
// all its metrics, which tells several collectors of one registry apart.
func NewCollector[S plugwire.Stats | plugwire.PoolStats](name string, source interface{ Stats() S }) prom.Collector {
	return prom.WrapCollectorWith(prom.Labels{"name": name}, collector(func() any { return source.Stats() }))
}

// A collector returns the Stats to be collected.
type collector func() any

// A metric is a family of metrics. Its first label is the transport.
type metric struct {
	*prom.Desc
	kind prom.ValueType
}

// The metrics of docs/METRICS.md, in its order.
var (
	all []*prom.Desc

	connections       = gauge("connections", "Open connections.")
	connectionsOpened = counter("connections_opened_total", "Handshakes that succeeded.")
	connectionsFailed = counter("connections_failed_total", "Dials and handshakes that failed, and connections not let in.", "code")
	connectionsBroken = counter("connections_broken_total", "Connections that ended otherwise than by Close or Shutdown.", "code")
	peersRefused      = counter("peers_refused_total", "Peers that a Server did not let in for who they are or what they could not show.")
	restarts          = counter("restarts_total", "Processes of a Plugin that took the place of one that had ended.")
	inFlight          = gauge("in_flight", "Calls and streams that run.", "kind", "side")
	operations        = counter("operations_total", "Calls, streams and one-way messages.", "kind", "side")
	messages          = counter("messages_total", "Requests, replies, one-way messages and messages of streams.", "direction")
	bytes             = counter("bytes_total", "Bytes on the connections.", "direction")
	reads             = counter("reads_total", "Read calls that gave bytes.")
	writeBytes        = histogram("write_bytes", "Bytes of one write call.")
	stalls            = counter("stalls_total", "Times that somebody waited for the other side's limit, or for the system to take more.", "limit")
	methodInFlight    = gauge("method_in_flight", "Calls and streams of a method that run.", "method", "kind", "side")
	methodEnded       = counter("method_ended_total", "Calls and streams of a method that ended, by code.", "method", "kind", "side", "code")
	methodSeconds     = histogram("method_seconds", "How long calls and streams of a method took.", "method", "kind", "side")
	certErrors        = counter("certificate_errors_total", "Failed attempts to read changed certificate files, of the whole process.")

	poolConnections = gauge("pool_connections", "Connections of a Pool.", "state")
	poolWaiting     = gauge("pool_waiting", "Calls that wait for a connection.")
	poolWaits       = histogram("pool_wait_seconds", "How long calls waited for a connection, of those that had to.")
	poolDials       = counter("pool_dials_total", "Dials that a Pool began.")
	poolDialErrors  = counter("pool_dial_errors_total", "Dials of a Pool that failed.")
	poolRetried     = counter("pool_retried_total", "Calls and one-way messages that a Pool tried again on another connection.")

	endpointConnections = gauge("endpoint_connections", "Connections to one address of a Pool.", "endpoint")
	endpointInFlight    = gauge("endpoint_in_flight", "Calls and streams of this side at one address.", "endpoint")
	endpointDials       = counter("endpoint_dials_total", "Dials to one address.", "endpoint")
	endpointDialErrors  = counter("endpoint_dial_errors_total", "Dials to one address that failed.", "endpoint", "code")
	endpointLeftAlone   = gauge("endpoint_left_alone", "1 while the address is left alone after a failure.", "endpoint")
)

func family(kind prom.ValueType, name, help string, labels []string) metric {
	d := prom.NewDesc("plugwire_"+name, help, append([]string{"transport"}, labels...), nil)
	all = append(all, d)
	return metric{d, kind}
}

func gauge(name, help string, labels ...string) metric {
	return family(prom.GaugeValue, name, help, labels)
}

func counter(name, help string, labels ...string) metric {
	return family(prom.CounterValue, name, help, labels)
}

func histogram(name, help string, labels ...string) metric {
	return family(prom.UntypedValue, name, help, labels)
}

// Describe sends what there may be.
func (collector) Describe(to chan<- *prom.Desc) {
	for _, d := range all {
		to <- d
	}
}

// Collect sends the metrics.
func (c collector) Collect(to chan<- prom.Metric) {
	switch s := c().(type) {
	case plugwire.Stats:
		collect(to, &s)
	case plugwire.PoolStats:
		collect(to, &s.Stats)
		collectPool(to, &s)
	}
}

// A sender sends metrics of one transport.
type sender struct {
	to        chan<- prom.Metric
	transport string
}

func (s sender) labels(labels []string) []string { return append([]string{s.transport}, labels...) }

func (s sender) send(m metric, value float64, labels ...string) {
	s.to <- prom.MustNewConstMetric(m.Desc, m.kind, value, s.labels(labels)...)
}

func (s sender) codes(m metric, counts plugwire.CodeCounts, labels ...string) {
	for code, n := range counts.All() {
		s.send(m, float64(n), append(labels, code)...)
	}
}

// Buckets of durations end at powers of two nanoseconds, where the counts are
// exact: from 4 microseconds to a minute.
const (
	leastBound = 12
	mostBound  = 36
)

func (s sender) seconds(m metric, h plugwire.Histogram, labels ...string) {
	buckets := make(map[float64]uint64, mostBound-leastBound+1)
	for i := leastBound; i <= mostBound; i++ {
		d := time.Duration(1) << i
		buckets[d.Seconds()] = h.Below(d)
	}
	s.to <- prom.MustNewConstHistogram(m.Desc, h.Count(), h.Sum().Seconds(), buckets, s.labels(labels)...)
}

func (s sender) sizes(m metric, t *plugwire.TransportStats) {
	buckets := make(map[float64]uint64)
	below := uint64(0)
	for i, n := range t.WriteSizes[:len(t.WriteSizes)-1] {
		below += n
		buckets[float64(uint64(64)<<i-1)] = below // they took less than 64<<i bytes
	}
	s.to <- prom.MustNewConstHistogram(m.Desc, t.Writes, float64(t.BytesWritten), buckets, s.labels(nil)...)
}

func collect(to chan<- prom.Metric, stats *plugwire.Stats) {
	for i := range stats.Transports {
		t := &stats.Transports[i]
		s := sender{to, t.Transport}
		s.send(connections, float64(t.Conns))
		s.send(connectionsOpened, float64(t.ConnsOpened))
		s.codes(connectionsFailed, t.ConnsFailed)
		s.codes(connectionsBroken, t.ConnsBroken)
		s.send(peersRefused, float64(t.Refused))
		s.send(restarts, float64(t.Restarts))
		s.send(inFlight, float64(t.CallsInFlight), "call", "sent")
		s.send(inFlight, float64(t.CallsServing), "call", "served")
		s.send(inFlight, float64(t.StreamsInFlight), "stream", "sent")
		s.send(inFlight, float64(t.StreamsServing), "stream", "served")
		s.send(operations, float64(t.CallsSent), "call", "sent")
		s.send(operations, float64(t.CallsServed), "call", "served")
		s.send(operations, float64(t.StreamsOpened), "stream", "sent")
		s.send(operations, float64(t.StreamsServed), "stream", "served")
		s.send(operations, float64(t.OneWaySent), "oneway", "sent")
		s.send(operations, float64(t.OneWayHandled), "oneway", "served")
		s.send(messages, float64(t.MessagesWritten), "written")
		s.send(messages, float64(t.MessagesRead), "read")
		s.send(bytes, float64(t.BytesWritten), "written")
		s.send(bytes, float64(t.BytesRead), "read")
		s.send(reads, float64(t.Reads))
		s.sizes(writeBytes, t)
		s.send(stalls, float64(t.Stalls.Calls), "calls")
		s.send(stalls, float64(t.Stalls.OneWay), "oneway")
		s.send(stalls, float64(t.Stalls.Streams), "stream")
		s.send(stalls, float64(t.Stalls.Writes), "write")
		for j := range t.Methods {
			m := &t.Methods[j]
			kind, side := "call", "sent"
			if m.Stream {
				kind = "stream"
			}
			if m.Served {
				side = "served"
			}
			s.send(methodInFlight, float64(m.InFlight), m.Method, kind, side)
			s.codes(methodEnded, m.Ended, m.Method, kind, side)
			s.seconds(methodSeconds, m.Latency, m.Method, kind, side)
		}
	}
	sender{to, stats.Transport}.send(certErrors, float64(stats.CertErrors))
}

func collectPool(to chan<- prom.Metric, stats *plugwire.PoolStats) {
	s := sender{to, stats.Transport}
	s.send(poolConnections, float64(stats.Open), "open")
	s.send(poolConnections, float64(stats.Draining), "draining")
	s.send(poolConnections, float64(stats.Dialing), "dialing")
	s.send(poolWaiting, float64(stats.Waiting))
	s.seconds(poolWaits, stats.Waits)
	s.send(poolDials, float64(stats.Dials))
	s.send(poolDialErrors, float64(stats.DialErrors))
	s.send(poolRetried, float64(stats.Retried))
	for i := range stats.Endpoints {
		e := &stats.Endpoints[i]
		s := sender{to, e.Transport}
		s.send(endpointConnections, float64(e.Conns), e.Addr)
		s.send(endpointInFlight, float64(e.CallsInFlight+e.StreamsInFlight), e.Addr)
		s.send(endpointDials, float64(e.Dials), e.Addr)
		s.codes(endpointDialErrors, e.ConnsFailed, e.Addr)
		alone := 0.0
		if e.LeftAlone > 0 {
			alone = 1
		}
		s.send(endpointLeftAlone, alone, e.Addr)
	}
}
