package plugwire

import (
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
)

// A tableLine is a benchmark's line in the table that is printed at the end.
type tableLine struct {
	name, ours, theirs, ratio string
	p50, p99                  float64 // microseconds; 0 where nobody waits
	cpu, theirCPU             float64 // microseconds; 0 where they mean nothing
	mallocs                   float64
}

// table holds the newest line of each benchmark, in the order they first ran.
var table []tableLine

func init() { afterTests = append(afterTests, printTable) }

func addTableLine(l tableLine) {
	for i := range table {
		if table[i].name == l.name {
			table[i] = l
			return
		}
	}
	table = append(table, l)
}

func printTable() {
	if len(table) == 0 {
		return
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\n\tplugwire\tby hand\tplugwire/by hand\tp50 us\tp99 us\tCPU us\tby hand\tallocs\t\n")
	for _, l := range table {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%.2f\t\n", strings.TrimPrefix(l.name, "Benchmark"),
			l.ours, l.theirs, l.ratio, number(l.p50), number(l.p99), number(l.cpu), number(l.theirCPU), l.mallocs)
	}
	w.Flush()
	fmt.Print(`
Client and server are two processes on one connection. "By hand" is the same work
written over the bare socket: raw is one ping-pong, or messages packed into large
writes; rawmux multiplexes many callers. The ratio is the median over turns of both,
of throughput (more is better) or of p50 (less is better). Latency is that of one
call, of DoAll that of its whole batch. CPU and allocations are those of both
processes together, for each message. Busy shares the client's process with CPU-bound
goroutines, beside a connection whose callers do not yield before they write. Beside
shares the connection with calls that take long; the ratio is to the p99 of callers alone.

`)
}

func megabytes(v float64) string { return number(v) + " MB/s" }

func perSecond(v float64) string {
	switch {
	case v >= 1e6:
		return number(v/1e6) + " M/s"
	case v >= 1e3:
		return number(v/1e3) + " k/s"
	}
	return number(v) + " /s"
}

// number writes three digits, and nothing for 0.
func number(v float64) string {
	switch {
	case v == 0:
		return "-"
	case v < 1:
		return fmt.Sprintf("%.3f", v)
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}
