package plugwire

import (
	"cmp"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The benchmarks compare this package with what a careful programmer writes by
// hand over the bare socket for the same work. Client and server are always
// separate processes. Both rows of a comparison run in short turns within the
// same benchmark, and the ratios (x-raw) are medians over the turns, so that a
// busy machine slows both alike. Run one with, say, -bench 'Unary/unix/64$';
// a longer -benchtime adds turns.
//
// The metrics, all of our row unless their name begins with "raw":
//
//	msgs/s         messages per second (MB/s: their payload)
//	p50-us p99-us  latency of one operation (of DoAll: the whole batch)
//	x-raw          our throughput divided by that of the row by hand: more is better
//	x-callers ...  the same of a third row
//	p50-x-raw      our median latency divided by its: less is better
//	raw-...        the same of the row by hand
//	cpu-us/op      user and system time per message, client-cpu-us/op and server-cpu-us/op together
//	allocs/op      allocations per message, both processes together

const (
	turn        = 100 * time.Millisecond
	fewTurns    = 3 // of each row in a session; the whole is to end within three minutes
	manyTurns   = 5 // of the rows that others are measured by
	minSessions = 3 // of fresh processes and connections, because each has its own luck with caches
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

// BenchmarkDoAll also compares with our own 1,024 callers (x-callers).
func BenchmarkDoAll(b *testing.B) {
	compareBoth(b, workload{name: "1024", size: 64, workers: 1, batch: 1024}, oursDoAllRow, rawMuxRow, oursCallersRow)
}

// BenchmarkOneWay also compares one sender with records packed under a lock (x-locked).
func BenchmarkOneWay(b *testing.B) {
	for _, n := range []int{1, 64} {
		rows := []row{oursOneWayRow, rawOneWayRow}
		if n == 1 {
			rows = append(rows, rawLockedRow)
		}
		compareBoth(b, workload{name: fmt.Sprint(n), size: 64, workers: n, batch: 256, oneWay: true}, rows...)
	}
}

// BenchmarkStream has one sender on one stream.
func BenchmarkStream(b *testing.B) {
	compareBoth(b, workload{name: "64B", size: 64, workers: 1, batch: 256, oneWay: true}, oursStreamRow, rawOneWayRow, rawLockedRow)
	compareBoth(b, workload{name: "64KiB", size: 64 << 10, workers: 1, batch: 1, oneWay: true, bulk: true}, oursStreamRow, rawOneWayRow)
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

// BenchmarkBusy has 64 callers share their process with goroutines that want
// all of the CPU, and compares p99 with that of a connection whose callers do
// not yield before they write (p99-x-noyield).
func BenchmarkBusy(b *testing.B) {
	b.Run("unix/64", func(b *testing.B) {
		var stop atomic.Bool
		var spinning sync.WaitGroup
		for range 2 * runtime.GOMAXPROCS(0) {
			spinning.Go(func() {
				for n := uint64(1); !stop.Load(); {
					for range 1000 {
						n = n*2862933555777941757 + 3037000493
					}
				}
			})
		}
		defer spinning.Wait()
		defer stop.Store(true)
		r := runTurns(b, "unix", workload{size: 64, workers: 64, batch: 1}, 4*turn, oursUnaryRow, oursNoYieldRow)
		reportP99(b, r[0], r[1], "noyield")
	})
}

// BenchmarkBeside has 8 callers share their connection with one whose calls
// take long, and compares p99 with that of callers who are alone (p99-x-alone):
// "large" are requests of 64 MiB, "slow" is a handler that sleeps 50 ms.
func BenchmarkBeside(b *testing.B) {
	for name, beside := range map[string]row{"large": oursLargeRow, "slow": oursSlowRow} {
		b.Run("unix/"+name, func(b *testing.B) {
			r := runTurns(b, "unix", workload{size: 64, workers: 8, batch: 1}, 3*turn, beside, oursAloneRow)
			reportP99(b, r[0], r[1], "alone")
		})
	}
}

// compareBoth compares our row with the others over each network, as
// sub-benchmarks network/workload.
func compareBoth(b *testing.B, w workload, rows ...row) {
	for _, network := range []string{"unix", "tcp"} {
		b.Run(network+"/"+w.name, func(b *testing.B) {
			w := w
			if network == "unix" {
				w.turns = manyTurns
			}
			reportRows(b, w, runTurns(b, network, w, turn, rows...))
		})
	}
}

// A rowRun is one row's part of a benchmark: its results, turn by turn.
type rowRun struct {
	row
	results []result
}

// runTurns gives each row a turn of length d, again and again, in alternating order.
func runTurns(b *testing.B, network string, w workload, d time.Duration, rows ...row) []*rowRun {
	runs := make([]*rowRun, len(rows))
	for i, r := range rows {
		runs[i] = &rowRun{row: r}
	}
	turns, enough := cmp.Or(w.turns, fewTurns), minSessions
	if testing.Short() {
		d, turns, enough = d/5, 1, 1
	}
	order := slices.Clone(runs)
	sessions := 0
	session := func() {
		runSession(b, network, w, d, turns, order)
		slices.Reverse(order)
		sessions++
	}
	for b.Loop() {
		session()
	}
	for sessions < enough {
		session()
	}
	return runs
}

// runSession starts fresh processes, connects to them, and gives each row its turns.
func runSession(b *testing.B, network string, w workload, d time.Duration, turns int, runs []*rowRun) {
	order := make([]func(d time.Duration) result, len(runs)) // a turn of each row
	for i, r := range runs {
		w := w
		if r.shape != nil {
			r.shape(&w)
		}
		server := startServer(b, r.service, network)
		defer server.stop()
		client, err := r.connect(network, server.addr, w)
		if err != nil {
			b.Fatalf("%s: %v", r.name, err)
		}
		defer func() {
			if err := client.close(); err != nil {
				b.Errorf("%s: close: %v", r.name, err)
			}
		}()
		lat := newLatencies(w.workers)
		order[i] = func(d time.Duration) result {
			if r.before != nil {
				r.before()
			}
			result, err := client.run(w, d, lat, server)
			if err != nil {
				b.Fatalf("%s: %v", r.name, err)
			}
			return result
		}
		order[i](d / 2) // warms both processes up
	}
	for done := range turns {
		for i := range order {
			if done%2 == 1 {
				i = len(order) - 1 - i
			}
			runs[i].results = append(runs[i].results, order[i](d))
		}
	}
}

// median returns the median of f over the turns.
func (r *rowRun) median(f func(i int) float64) float64 {
	values := make([]float64, len(r.results))
	for i := range values {
		values[i] = f(i)
	}
	slices.Sort(values)
	return (values[len(values)/2] + values[(len(values)-1)/2]) / 2
}

func (r *rowRun) rate() float64 { return r.median(func(i int) float64 { return r.results[i].rate() }) }
func (r *rowRun) p50() float64 {
	return r.median(func(i int) float64 { return micros(r.results[i].p50) })
}
func (r *rowRun) p99() float64 {
	return r.median(func(i int) float64 { return micros(r.results[i].p99) })
}

func micros(d time.Duration) float64 { return float64(d) / 1e3 }

// perMessage returns CPU microseconds of the client and of the server and the
// allocations of both, for each message of all turns.
func (r *rowRun) perMessage() (client, server, mallocs float64) {
	var n float64
	for _, x := range r.results {
		n += float64(x.messages)
		client += micros(x.client.cpu)
		server += micros(x.server.cpu)
		mallocs += float64(x.client.mallocs + x.server.mallocs)
	}
	return client / n, server / n, mallocs / n
}

// over returns the median over the turns of f of ours divided by f of theirs.
func (r *rowRun) over(theirs *rowRun, f func(result) float64) float64 {
	return r.median(func(i int) float64 { return f(r.results[i]) / f(theirs.results[i]) })
}

// reportRows gives the metrics to the benchmark and a line to the table. The first
// row is ours, the second that by hand, a third one more to compare with.
func reportRows(b *testing.B, w workload, runs []*rowRun) {
	ours, theirs := runs[0], runs[1]
	client, server, mallocs := ours.perMessage()
	rawClient, rawServer, _ := theirs.perMessage()
	rate, rawRate, unit, format := ours.rate(), theirs.rate(), "msgs/s", perSecond
	if w.bulk {
		rate, rawRate, unit, format = rate*float64(w.size)/1e6, rawRate*float64(w.size)/1e6, "MB/s", megabytes
	}
	ratio := ours.over(theirs, result.rate)
	line := tableLine{
		name: b.Name(), ours: format(rate), theirs: theirs.name + " " + format(rawRate),
		ratio: fmt.Sprintf("%.2fx", ratio),
		cpu:   client + server, theirCPU: rawClient + rawServer, mallocs: mallocs,
	}
	if !w.oneWay { // in which nobody waits
		line.p50, line.p99 = ours.p50(), ours.p99()
		b.ReportMetric(line.p50, "p50-us")
		b.ReportMetric(line.p99, "p99-us")
		b.ReportMetric(theirs.p50(), "raw-p50-us")
	}
	if w.latency {
		p50Ratio := ours.over(theirs, func(r result) float64 { return micros(r.p50) })
		b.ReportMetric(p50Ratio, "p50-x-raw")
		line.ratio = fmt.Sprintf("p50 %.2fx", p50Ratio)
	}
	if len(runs) > 2 {
		b.ReportMetric(ours.over(runs[2], result.rate), "x-"+runs[2].name)
	}
	b.ReportMetric(ratio, "x-raw")
	b.ReportMetric(rate, unit)
	b.ReportMetric(rawRate, "raw-"+unit)
	b.ReportMetric(line.cpu, "cpu-us/op")
	b.ReportMetric(client, "client-cpu-us/op")
	b.ReportMetric(server, "server-cpu-us/op")
	b.ReportMetric(line.theirCPU, "raw-cpu-us/op")
	b.ReportMetric(mallocs, "allocs/op")
	b.ReportMetric(0, "ns/op") // of a turn: means nothing
	addTableLine(line)
}

// reportP99 compares p99 with that of another row of ours.
func reportP99(b *testing.B, ours, other *rowRun, short string) {
	client, server, mallocs := ours.perMessage() // CPU is that of what runs beside, too
	ratio := ours.over(other, func(r result) float64 { return micros(r.p99) })
	b.ReportMetric(ratio, "p99-x-"+short)
	b.ReportMetric(ours.p50(), "p50-us")
	b.ReportMetric(ours.p99(), "p99-us")
	b.ReportMetric(other.p99(), short+"-p99-us")
	b.ReportMetric(ours.rate(), "msgs/s")
	b.ReportMetric(other.rate(), short+"-msgs/s")
	b.ReportMetric(client, "client-cpu-us/op")
	b.ReportMetric(server, "server-cpu-us/op")
	b.ReportMetric(mallocs, "allocs/op")
	b.ReportMetric(0, "ns/op")
	addTableLine(tableLine{
		name: b.Name(), ours: perSecond(ours.rate()), theirs: other.name + " " + perSecond(other.rate()),
		ratio: fmt.Sprintf("p99 %.2fx", ratio), p50: ours.p50(), p99: ours.p99(), mallocs: mallocs,
	})
}
