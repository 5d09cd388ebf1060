package plugwire

import (
	"errors"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
)

// TestNoAllocations sends 100,000 messages over a Unix socket to another
// process, and looks at how often both processes allocated meanwhile.
func TestNoAllocations(t *testing.T) {
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		t.Skip("the race detector makes pools forget")
	}
	if underWine {
		t.Skip("not shown under wine: a round trip takes a millisecond there, and this makes 100,000")
	}
	for _, c := range []struct {
		row row
		w   workload
	}{
		{oursUnaryRow, workload{name: "one caller", workers: 1, batch: 1}},
		{oursUnaryRow, workload{name: "64 callers", workers: 64, batch: 1}},
		{metricsRow, workload{name: "64 callers with metrics", workers: 64, batch: 1}},
		{oursDoAllRow, workload{name: "DoAll", workers: 1, batch: 1000}},
		{oursOneWayRow, workload{name: "one-way", workers: 1, batch: 1000}},
	} {
		t.Run(c.w.name, func(t *testing.T) {
			c.w.size = 64
			testNoAllocations(t, c.row, c.w)
		})
	}
}

func testNoAllocations(t *testing.T, r row, w workload) {
	server := startServer(t, r.service, "unix")
	client, err := r.connect("unix", server.addr, w)
	if err != nil {
		t.Fatal(err)
	}
	defer client.close()
	operations := make([]func() error, w.workers)
	for i := range operations {
		operations[i] = client.worker(i)
	}
	failed := make([]error, w.workers)
	send := func(messages int) {
		var done sync.WaitGroup
		for i, operation := range operations {
			done.Go(func() {
				for range messages / w.workers / w.batch {
					failed[i] = errors.Join(failed[i], operation())
				}
			})
		}
		done.Wait()
		if client.settle != nil {
			failed = append(failed, client.settle())
		}
		if err := errors.Join(failed...); err != nil {
			t.Fatal(err)
		}
	}
	messages := longRun(32_000, 100_000)
	send(messages / 10) // until buffers have their size
	server0, err := server.usage()
	if err != nil {
		t.Fatal(err)
	}
	client0 := selfUsage()
	send(messages)
	clientMallocs := selfUsage().minus(client0).mallocs
	server1, err := server.usage()
	if err != nil {
		t.Fatal(err)
	}
	serverMallocs := server1.minus(server0).mallocs
	t.Logf("%d messages: %d allocations in the client, %d in the server", messages, clientMallocs, serverMallocs)
	if max(clientMallocs, serverMallocs) >= uint64(messages/100) {
		t.Errorf("%d messages: %d allocations in the client, %d in the server; want (almost) none", messages, clientMallocs, serverMallocs)
	}
}
