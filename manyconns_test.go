package plugwire

import (
	"encoding/json"
	"runtime"
	"runtime/metrics"
	"sync"
	"testing"
	"time"
)

// A footprint is what a process has at a moment when it does nothing.
type footprint struct {
	Descriptors, Goroutines int
	Memory                  int64 // bytes of heap objects and goroutines' stacks
}

func measureFootprint() (f footprint) {
	for range 3 { // pools and finalizers keep things for a collection or two
		runtime.GC()
	}
	samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(samples)
	for _, s := range samples {
		f.Memory += int64(s.Value.Uint64())
	}
	f.Descriptors, f.Goroutines = openDescriptors(), runtime.NumGoroutine()
	return f
}

// settled measures until what is not needed any more has gone.
func settled(measure func() footprint) footprint {
	last := measure()
	for range 30 {
		time.Sleep(20 * time.Millisecond)
		f := measure()
		if last.Memory-f.Memory < last.Memory/100 && f.Goroutines == last.Goroutines {
			return f
		}
		last = f
	}
	return last
}

// TestManyConnections opens many connections to another process and makes many
// calls on each. What each side then holds for a connection that is idle is at
// most 20 KiB, and 8 KiB more where crypto/tls keeps its state and certificates;
// when all are closed, descriptors and goroutines are as before.
func TestManyConnections(t *testing.T) {
	conns, calls := 300, 20 // for buffers that all share not to count
	if longTests {
		conns, calls = 1000, 1000
	}
	for _, kind := range []struct {
		name, service, network string
		most                   int64
	}{
		{"unix", "plugwire", "unix", 20 << 10},
		{"tcp", "plugwire", "tcp", 20 << 10},
		{"tls", "plugwire-tls", "tcp", 28 << 10},
	} {
		t.Run(kind.name, func(t *testing.T) {
			if benchServices[kind.service] == nil {
				t.Skip("this build has no TLS")
			}
			server := startServer(t, kind.service, kind.network)
			asks, err := dialOurs(server.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer asks.Close()
			theirs := func() (f footprint) {
				reply, err := asks.Call(background, "footprint", nil)
				if err == nil {
					err = json.Unmarshal(reply, &f)
				}
				if err != nil {
					t.Fatal(err)
				}
				return f
			}
			ourBefore, theirBefore := settled(measureFootprint), settled(theirs)

			open := make([]*Conn, conns)
			for i := range open {
				if open[i], err = dialOurs(server.addr); err != nil {
					t.Fatal(err)
				}
				defer open[i].Close()
			}
			var wg sync.WaitGroup
			for i, c := range open {
				wg.Go(func() {
					call := echoCaller(c, i, workload{size: 64})
					for range calls {
						if err := call(); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()

			ours := (settled(measureFootprint).Memory - ourBefore.Memory) / int64(conns)
			served := (settled(theirs).Memory - theirBefore.Memory) / int64(conns)
			t.Logf("%d connections x %d calls: an idle connection holds %.1f KiB where it was dialled, %.1f KiB where it is served",
				conns, calls, float64(ours)/1024, float64(served)/1024)
			if max(ours, served) > kind.most && !raceEnabled {
				t.Errorf("that is more than %d bytes", kind.most)
			}

			closeBoth(open...)
			const some = 4 // goroutines of the measuring itself
			until(t, "as before", func() bool {
				our, their := measureFootprint(), theirs()
				return our.Descriptors <= ourBefore.Descriptors && our.Goroutines <= ourBefore.Goroutines+some &&
					their.Descriptors <= theirBefore.Descriptors && their.Goroutines <= theirBefore.Goroutines+some
			})
		})
	}
}
