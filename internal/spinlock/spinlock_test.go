package spinlock

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestTryLock(t *testing.T) {
	var m Mutex
	for range 3 {
		if !m.TryLock() {
			t.Fatal("a free lock was not taken")
		}
		if m.TryLock() {
			t.Fatal("a taken lock was taken")
		}
		m.Unlock()
	}
}

// A section sees all that was written in those before it, and nobody else is in it.
func TestOneAtATime(t *testing.T) {
	const rounds = 20_000
	for _, procs := range []int{1, 2, 8} {
		for _, workers := range []int{2, 3, 64} {
			t.Run(fmt.Sprintf("%d procs, %d workers", procs, workers), func(t *testing.T) {
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
				var (
					m    Mutex
					wg   sync.WaitGroup
					sums [9]int // on two lines of the cache
				)
				for i := range workers {
					wg.Go(func() {
						for n := range rounds {
							if !m.TryLock() {
								m.Lock()
							}
							for k := range sums {
								if sums[k] != sums[0] {
									t.Errorf("seen inside somebody's section: %v", sums)
								}
							}
							for k := range sums {
								sums[k]++
								if n%1000 == i%1000 && k == 4 {
									runtime.Gosched() // as if interrupted
								}
							}
							m.Unlock()
						}
					})
				}
				wg.Wait()
				if want := workers * rounds; sums[0] != want || sums[8] != want {
					t.Errorf("%v, want %d", sums, want)
				}
			})
		}
	}
}

// Whoever waits for long gets the lock all the same, also from a goroutine that
// sleeps, and by the clock of a bubble.
func TestLongWaits(t *testing.T) {
	wait := func(t *testing.T) {
		var m Mutex
		var wg sync.WaitGroup
		m.Lock()
		n := 0
		for range 8 {
			wg.Go(func() {
				m.Lock()
				n++
				m.Unlock()
			})
		}
		time.Sleep(20 * time.Millisecond)
		if n != 0 {
			t.Errorf("%d were in a section beside this one", n)
		}
		m.Unlock()
		wg.Wait()
		if n != 8 {
			t.Errorf("%d of 8 had the lock", n)
		}
	}
	t.Run("real", wait)
	t.Run("one processor", func(t *testing.T) {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
		wait(t)
	})
	t.Run("bubble", func(t *testing.T) { synctest.Test(t, wait) })
}

// BenchmarkAppend is what the lock is for.
func BenchmarkAppend(b *testing.B) {
	buf, message := make([]byte, 0, 64<<10), make([]byte, 64)
	add := func() {
		if len(buf)+len(message) > cap(buf) {
			buf = buf[:0]
		}
		buf = append(buf, message...)
	}
	b.Run("none", func(b *testing.B) {
		for b.Loop() {
			add()
		}
	})
	b.Run("spinlock", func(b *testing.B) {
		var m Mutex
		for b.Loop() {
			m.Lock()
			add()
			m.Unlock()
		}
	})
	b.Run("sync", func(b *testing.B) {
		var m sync.Mutex
		for b.Loop() {
			m.Lock()
			add()
			m.Unlock()
		}
	})
}
