package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/plugwire/plugwire"
)

const (
	each    = time.Second // how long each measurement runs
	callers = 64
	batch   = 256
)

// measure prints a line for each way to send 64-byte messages to the plugin. The
// latency of a batch is that of all its calls together; one-way messages have none.
func measure(ctx context.Context, p *plugwire.Plugin) error {
	message := make([]byte, 64)
	call := func() error {
		_, err := p.Call(ctx, "greet", message)
		return err
	}
	calls := make([]*plugwire.Call, batch)
	for i := range calls {
		calls[i] = &plugwire.Call{Method: "greet", Request: message}
	}
	callAll := func() error {
		for _, c := range calls {
			c.Reply = c.Reply[:0]
		}
		return p.DoAll(ctx, calls)
	}
	notify := func() error {
		for range batch {
			if err := p.Notify(ctx, "greet", message); err != nil {
				return err
			}
		}
		return nil
	}

	fmt.Printf("%-34s %12s %10s %10s\n", "64-byte messages", "messages/s", "p50", "p99")
	for _, m := range []struct {
		name     string
		workers  int
		messages int // that one operation sends
		op       func() error
		flush    func(context.Context) error
	}{
		{"calls, one caller", 1, 1, call, nil},
		{fmt.Sprintf("calls, %d callers", callers), callers, 1, call, nil},
		{fmt.Sprintf("calls, batches of %d", batch), 1, batch, callAll, nil},
		{"one-way messages", 1, batch, notify, p.Conn().Flush},
	} {
		took, latencies, err := repeat(m.workers, m.op)
		if err != nil {
			return err
		}
		if m.flush != nil { // sent is not yet handled
			start := time.Now()
			if err := m.flush(ctx); err != nil {
				return err
			}
			took += time.Since(start)
		}
		rate := float64(len(latencies)*m.messages) / took.Seconds()
		if m.flush != nil {
			fmt.Printf("%-34s %12.0f %10s %10s\n", m.name, rate, "-", "-")
			continue
		}
		slices.Sort(latencies)
		fmt.Printf("%-34s %12.0f %10v %10v\n", m.name, rate,
			latencies[len(latencies)/2].Round(100*time.Nanosecond), latencies[len(latencies)*99/100].Round(100*time.Nanosecond))
	}
	return nil
}

// repeat runs op again and again in so many goroutines, and returns how long
// that took in all and each time.
func repeat(workers int, op func() error) (took time.Duration, latencies []time.Duration, err error) {
	var (
		mu    sync.Mutex // guards the results
		group sync.WaitGroup
		start = time.Now()
	)
	for range workers {
		group.Go(func() {
			var own []time.Duration
			var failed error
			for now := time.Now(); failed == nil && now.Sub(start) < each; {
				failed = op()
				end := time.Now()
				own = append(own, end.Sub(now))
				now = end
			}
			mu.Lock()
			defer mu.Unlock()
			latencies = append(latencies, own...)
			if err == nil {
				err = failed
			}
		})
	}
	group.Wait()
	return time.Since(start), latencies, err
}
