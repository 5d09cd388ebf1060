package plugwire

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// The benchmarks compare this package with what a careful programmer writes by
// hand over the bare socket for the same work. Client and server are always
// separate processes. Both rows of a comparison run in short turns within the
// same benchmark, and the ratios (x-raw) are medians over the turns, so that a
// busy machine slows both alike. Run one with, say, -bench 'Unary/unix/64$';
// -benchtime adds turns.
//
// The metrics, all of our row unless their name begins with "raw":
//
//	msgs/s         messages per second (MB/s: their payload)
//	p50-us p99-us  latency of one operation (of DoAll: the whole batch)
//	x-raw          our throughput divided by that of the row by hand: more is better
//	p50-x-raw      our median latency divided by its: less is better
//	cpu-us/op      user and system time per message, client-cpu-us/op and server-cpu-us/op together
//	allocs/op      allocations per message, both processes together

const (
	turn     = 100 * time.Millisecond
	minTurns = 15
)

func BenchmarkUnary(b *testing.B) {
	for _, n := range []int{1, 64, 1024} {
		theirs := rawMuxRow
		if n == 1 {
			theirs = rawRow
		}
		compareBoth(b, workload{name: fmt.Sprint(n), size: 64, workers: n, batch: 1, latency: n == 1}, oursUnaryRow, theirs)
	}
}

func BenchmarkDoAll(b *testing.B) {
	compareBoth(b, workload{name: "1024", size: 64, workers: 1, batch: 1024}, oursDoAllRow, rawMuxRow)
}

func BenchmarkOneWay(b *testing.B) {
	for _, n := range []int{1, 64} {
		compareBoth(b, workload{name: fmt.Sprint(n), size: 64, workers: n, batch: 256, oneWay: true}, oursOneWayRow, rawOneWayRow)
	}
}

func BenchmarkBulk(b *testing.B) {
	for _, size := range []int{64 << 10, 1 << 20} {
		name := map[int]string{64 << 10: "64KiB", 1 << 20: "1MiB"}[size]
		compareBoth(b, workload{name: name + "-oneway", size: size, workers: 1, batch: 1, oneWay: true, bulk: true}, oursOneWayRow, rawOneWayRow)
		compareBoth(b, workload{name: name + "-call", size: size, workers: 1, batch: 1, bulk: true}, oursUnaryRow, rawRow)
	}
}

func BenchmarkConnect(b *testing.B) {
	compareBoth(b, workload{name: "first-call", size: 64, workers: 1, batch: 1, latency: true}, oursConnectRow, rawConnectRow)
}

// compareBoth compares two rows over each network, as sub-benchmarks network/workload.
func compareBoth(b *testing.B, w workload, ours, theirs row) {
	for _, network := range []string{"unix", "tcp"} {
		b.Run(network+"/"+w.name, func(b *testing.B) {
			r := runTurns(b, network, w, turn, ours, theirs)
			report(b, w, r[0], r[1])
		})
	}
}

// A rowRun is one row's part of a benchmark.
type rowRun struct {
	row
	server *benchServer
	client *benchClient
	rounds []round
}

// runTurns runs a turn of each row, again and again, in alternating order.
func runTurns(b *testing.B, network string, w workload, d time.Duration, rows ...row) []*rowRun {
	turns := minTurns
	if testing.Short() {
		d, turns = d/5, 1
	}
	runs := make([]*rowRun, len(rows))
	lat := newLatencies(w.workers)
	one := func(r *rowRun, w workload, d time.Duration) round {
		if r.before != nil {
			r.before()
		}
		if r.name == "raw" {
			w.workers = 1
		}
		result, err := r.client.run(w, d, lat, r.server)
		if err != nil {
			b.Fatalf("%s: %v", r.name, err)
		}
		return result
	}
	for i, r := range rows {
		runs[i] = &rowRun{row: r, server: startServer(b, r.service, network)}
		client, err := r.connect(network, runs[i].server.addr, w)
		if err != nil {
			b.Fatalf("%s: %v", r.name, err)
		}
		defer func() {
			if err := client.close(); err != nil {
				b.Errorf("%s: close: %v", r.name, err)
			}
		}()
		runs[i].client = client
		one(runs[i], w, d/2) // warms both processes up
	}
	order := slices.Clone(runs)
	step := func() {
		for _, r := range order {
			r.rounds = append(r.rounds, one(r, w, d))
		}
		slices.Reverse(order)
	}
	for b.Loop() {
		step()
	}
	for len(runs[0].rounds) < turns {
		step()
	}
	return runs
}

// median returns the median of f over the rounds.
func (r *rowRun) median(f func(i int) float64) float64 {
	values := make([]float64, len(r.rounds))
	for i := range values {
		values[i] = f(i)
	}
	slices.Sort(values)
	return (values[len(values)/2] + values[(len(values)-1)/2]) / 2
}

func (r *rowRun) rate() float64 { return r.median(func(i int) float64 { return r.rounds[i].rate() }) }
func (r *rowRun) p50() float64 {
	return r.median(func(i int) float64 { return micros(r.rounds[i].p50) })
}
func (r *rowRun) p99() float64 {
	return r.median(func(i int) float64 { return micros(r.rounds[i].p99) })
}

func micros(d time.Duration) float64 { return float64(d) / 1e3 }

// perMessage returns CPU microseconds of the client and of the server and the
// allocations of both, for each message of all rounds.
func (r *rowRun) perMessage() (client, server, mallocs float64) {
	var n float64
	for _, x := range r.rounds {
		n += float64(x.messages)
		client += micros(x.client.cpu)
		server += micros(x.server.cpu)
		mallocs += float64(x.client.mallocs + x.server.mallocs)
	}
	return client / n, server / n, mallocs / n
}

// report gives the metrics to the benchmark and a line to the table.
func report(b *testing.B, w workload, ours, theirs *rowRun) {
	client, server, mallocs := ours.perMessage()
	rawClient, rawServer, _ := theirs.perMessage()
	line := tableLine{
		name: b.Name(), theirs: theirs.name, p50: ours.p50(), p99: ours.p99(),
		ours: ours.rate(), raw: theirs.rate(), unit: "msgs/s",
		cpu: client + server, rawCPU: rawClient + rawServer, mallocs: mallocs,
		ratio:    ours.median(func(i int) float64 { return ours.rounds[i].rate() / theirs.rounds[i].rate() }),
		p50Ratio: ours.median(func(i int) float64 { return float64(ours.rounds[i].p50) / float64(theirs.rounds[i].p50) }),
	}
	if w.bulk {
		line.unit = "MB/s"
		line.ours *= float64(w.size) / 1e6
		line.raw *= float64(w.size) / 1e6
	}
	if w.oneWay {
		line.p50, line.p99 = 0, 0 // nobody waits
	} else {
		b.ReportMetric(line.p50, "p50-us")
		b.ReportMetric(line.p99, "p99-us")
		b.ReportMetric(theirs.p50(), "raw-p50-us")
	}
	line.byLatency = w.latency
	if w.latency {
		b.ReportMetric(line.p50Ratio, "p50-x-raw")
	}
	b.ReportMetric(line.ratio, "x-raw")
	b.ReportMetric(line.ours, line.unit)
	b.ReportMetric(line.raw, "raw-"+line.unit)
	b.ReportMetric(line.cpu, "cpu-us/op")
	b.ReportMetric(client, "client-cpu-us/op")
	b.ReportMetric(server, "server-cpu-us/op")
	b.ReportMetric(line.rawCPU, "raw-cpu-us/op")
	b.ReportMetric(mallocs, "allocs/op")
	b.ReportMetric(0, "ns/op") // of a turn: means nothing
	addTableLine(line)
}
