package plugwire

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
)

// BenchmarkPool compares a Pool of one connection with that connection (x-raw:
// its throughput divided by that of the bare Conn), and Pools of 4 with a Pool
// of 1. Each client has a server process of its own.
func BenchmarkPool(b *testing.B) {
	for _, n := range []int{1, 64} {
		w := workload{name: fmt.Sprintf("of-1-to-conn-%d", n), size: 64, workers: n, batch: 1, latency: n == 1}
		compareBoth(b, w, poolRow(oursUnaryRow, 1), oursUnaryRow)
	}
	comparePools(b, "", oursUnaryRow)
}

// comparePools compares a Pool of 4 with one of 1, for small and large calls.
func comparePools(b *testing.B, kind string, r row) {
	networks := []string{"unix", "tcp"}
	if kind != "" {
		networks = networks[1:]
	}
	for _, w := range []workload{
		{name: "of-4-to-1-64B-64", size: 64, workers: 64, batch: 1},
		{name: "of-4-to-1-64KiB-16", size: 64 << 10, workers: 16, batch: 1, bulk: true},
	} {
		for _, network := range networks {
			b.Run(network+kind+"/"+w.name, func(b *testing.B) {
				reportRows(b, w, runTurns(b, network, w, turn, poolRow(r, 4), poolRow(r, 1)))
			})
		}
	}
}

// poolRow is r with a Pool of that many connections.
func poolRow(r row, size int) row {
	r.name = fmt.Sprintf("pool-%d", size)
	r.connect = func(_, addr string, w workload) (*benchClient, error) {
		addr, cfg := benchTarget(addr)
		cfg.Pool.Size = size
		p := NewPool(cfg, addr)
		for p.Stats().Open < size { // it opens them when it is busy
			var wg sync.WaitGroup
			errs := make([]error, 4*size)
			for i := range errs {
				wg.Go(func() { _, errs[i] = p.Call(context.Background(), "echo", nil) })
			}
			wg.Wait()
			if err := errors.Join(errs...); err != nil {
				return nil, err
			}
		}
		return &benchClient{
			worker: func(i int) func() error { return echoCaller(p, i, w) },
			close:  p.Close,
		}, nil
	}
	return r
}

// benchTarget returns what is dialled for a server process, which may have said
// more than its address.
var benchTarget = func(addr string) (string, *Config) { return addr, new(Config) }
