package plugwire

import (
	"context"
	"testing"
)

// BenchmarkMetrics compares calls with Config.Metrics on both sides with calls
// without (x-without: throughput with divided by throughput without), and those
// with others that have none either (x-noise), which says how far to trust it.
func BenchmarkMetrics(b *testing.B) {
	for _, n := range []int{1, 64} {
		w := workload{size: 64, workers: n, batch: 1}
		b.Run("unix/"+map[int]string{1: "1", 64: "64"}[n], func(b *testing.B) {
			without, again := oursUnaryRow, oursUnaryRow
			without.name, again.name = "without", "without too"
			r := runTurns(b, "unix", w, turn, metricsRow, without, again)
			ratio := r[0].over(r[1], result.rate)
			b.ReportMetric(ratio, "x-without")
			b.ReportMetric(r[2].over(r[1], result.rate), "x-noise")
			b.ReportMetric(r[0].rate(), "msgs/s")
			b.ReportMetric(r[1].rate(), "without-msgs/s")
			client, server, mallocs := r[0].perMessage()
			client0, server0, _ := r[1].perMessage()
			b.ReportMetric(1000*(client-client0), "more-client-cpu-ns/op")
			b.ReportMetric(1000*(server-server0), "more-server-cpu-ns/op")
			b.ReportMetric(mallocs, "allocs/op")
			b.ReportMetric(0, "ns/op")
			addTableLine(tableLine{name: b.Name(), ours: perSecond(r[0].rate()), theirs: "without " + perSecond(r[1].rate()),
				ratio: number(ratio) + "x", p50: r[0].p50(), p99: r[0].p99(), cpu: client + server, theirCPU: client0 + server0, mallocs: mallocs})
		})
	}
}

// metricsRow is oursUnaryRow with Config.Metrics on both sides.
var metricsRow = row{name: "metrics", service: "plugwire-metrics", connect: connectMetrics}

func connectMetrics(_, addr string, w workload) (*benchClient, error) {
	addr, cfg := benchTarget(addr)
	cfg.Metrics = true
	conn, err := Dial(context.Background(), addr, cfg)
	if err != nil {
		return nil, err
	}
	return &benchClient{
		worker: func(i int) func() error { return echoCaller(conn, i, w) },
		close:  conn.Close,
	}, nil
}

func init() {
	benchServices["plugwire-metrics"] = func(network string) (string, func(), error) {
		return serveOurs(network, &Config{Metrics: true})
	}
}
