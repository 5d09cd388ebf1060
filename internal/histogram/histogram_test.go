package histogram

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
	"unsafe"
)

// TestQuantiles compares with the exact quantiles of a million samples each.
func TestQuantiles(t *testing.T) {
	const samples = 1_000_000
	rnd := rand.New(rand.NewPCG(1, 2))
	for name, sample := range map[string]func() float64{
		"exponential, mean 100us": func() float64 { return rnd.ExpFloat64() * 100e3 },
		"log-normal, long tail":   func() float64 { return 20e3 * math.Exp(1.5*rnd.NormFloat64()) },
		"uniform, 10ms":           func() float64 { return rnd.Float64() * 10e6 },
		"two modes, 2us and 40ms": func() float64 {
			if rnd.IntN(100) == 0 {
				return 40e6 * (1 + 0.1*rnd.NormFloat64())
			}
			return 2e3 * (1 + 0.1*rnd.NormFloat64())
		},
		"tiny": func() float64 { return float64(rnd.IntN(100)) },
	} {
		t.Run(name, func(t *testing.T) {
			var h Histogram
			exact := make([]time.Duration, samples)
			sum := time.Duration(0)
			for i := range exact {
				exact[i] = max(time.Duration(sample()), 0)
				sum += exact[i]
				h.Add(exact[i], 1)
			}
			slices.Sort(exact)
			for _, q := range []float64{0, 0.5, 0.9, 0.99, 0.999, 0.9999, 1} {
				want := exact[max(int(math.Ceil(q*samples))-1, 0)]
				got := h.Quantile(q)
				if off := math.Abs(float64(got-want)) / max(float64(want), 1); off > 0.02 {
					t.Errorf("quantile %v: %v, exactly %v: off by %.2f %%", q, got, want, 100*off)
				}
			}
			if h.Count() != samples || h.Sum() != sum {
				t.Errorf("%d samples of %v, want %d of %v", h.Count(), h.Sum(), samples, sum)
			}
			for d := time.Duration(1); d < time.Second; d *= 2 {
				want, _ := slices.BinarySearch(exact, d)
				if got := h.Below(d); got != uint64(want) {
					t.Errorf("%d below %v, want %d", got, d, want)
				}
			}
		})
	}
}

// TestMerge splits what is counted, and looks at values beyond the ends.
func TestMerge(t *testing.T) {
	var all, a, b Histogram
	for i := range 10_000 {
		d := time.Duration(i * i * 1000)
		all.Add(d, 1)
		if i%3 == 0 {
			a.Add(d, 1)
		} else if i%3 == 1 {
			all.Add(d, 1)
			a.Add(d, 2)
		} else {
			b.Add(d, 1)
		}
	}
	for _, d := range []time.Duration{-5, math.MinInt64, math.MaxInt64 / 2, 0} {
		all.Add(d, 1)
		a.Add(d, 1)
	}
	a.Merge(&b)
	if a.Count() != all.Count() || a.Sum() != all.Sum() {
		t.Errorf("merged: %d of %v, want %d of %v", a.Count(), a.Sum(), all.Count(), all.Sum())
	}
	for q := 0.0; q <= 1; q += 0.001 {
		if a.Quantile(q) != all.Quantile(q) {
			t.Errorf("quantile %v: %v merged, %v at once", q, a.Quantile(q), all.Quantile(q))
		}
	}
	if q := all.Quantile(1); q < 30*time.Minute {
		t.Errorf("146 years count as %v", q)
	}
	if n := all.Below(math.MaxInt64); n != all.Count() {
		t.Errorf("%d below everything, of %d", n, all.Count())
	}
	var none Histogram
	if none.Quantile(0.5) != 0 || none.Below(1) != 0 {
		t.Error("an empty histogram has something")
	}
}

// TestBuckets has every bucket border on the next, and no more memory than said.
func TestBuckets(t *testing.T) {
	next := uint64(0)
	for i := range octaves {
		for j := range subs {
			from, to := bounds(i, j)
			if from != next || to <= from {
				t.Fatalf("bucket %d.%d is [%d, %d), want it to begin at %d", i, j, from, to, next)
			}
			for _, v := range []uint64{from, to - 1} {
				if a, b := place(v); a != i || b != j {
					t.Fatalf("%d goes to bucket %d.%d, not %d.%d", v, a, b, i, j)
				}
			}
			next = to
		}
	}
	if next != most+1 {
		t.Errorf("the buckets end at %d, not at %d", next, uint64(most)+1)
	}
	var h Histogram
	if size := unsafe.Sizeof(h) + octaves*unsafe.Sizeof(*h.octaves[0]); size > 9800 {
		t.Errorf("a full histogram has %d bytes", size)
	}
}

func TestAddAllocatesNothing(t *testing.T) {
	var h Histogram
	h.Add(1000, 1)
	if n := testing.AllocsPerRun(100, func() { h.Add(1000, 1) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAdd(b *testing.B) {
	var h Histogram
	for i := 0; b.Loop(); i++ {
		h.Add(time.Duration(i&0xffff), 1)
	}
}
