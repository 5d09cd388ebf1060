// Package histogram counts durations in buckets whose width grows with them, so
// that quantiles of nanoseconds and of minutes are equally exact and memory does
// not depend on how many durations were counted.
//
// It is log-linear, as HdrHistogram is (https://hdrhistogram.org): each power of
// two is divided into 32 buckets of the same width. What Quantile returns is off
// by at most 1/64 (1.6 %) of the duration.
package histogram

import (
	"math"
	"math/bits"
	"time"
)

const (
	subBits = 5
	subs    = 1 << subBits // buckets for each power of two
	octaves = 37           // the first is for less than 32 ns, the last up to most
	// most is where distinction ends: 36 minutes.
	most = 1<<(octaves-1+subBits) - 1
)

// A Histogram counts durations. Its zero value is empty and ready. It has at most
// 9.8 KB, of which it takes what the durations need: 256 bytes for each power of two.
type Histogram struct {
	count   uint64
	sum     uint64 // nanoseconds
	octaves [octaves]*[subs]uint64
}

// Add counts d n times; a negative one as 0.
func (h *Histogram) Add(d time.Duration, n uint64) {
	v := uint64(max(d, 0))
	h.count += n
	h.sum += n * v
	octave, sub := place(min(v, most))
	if h.octaves[octave] == nil {
		h.octaves[octave] = new([subs]uint64)
	}
	h.octaves[octave][sub] += n
}

// place returns the bucket of v.
func place(v uint64) (octave, sub int) {
	if v < subs {
		return 0, int(v)
	}
	shift := bits.Len64(v) - 1 - subBits
	return shift + 1, int(v>>shift) & (subs - 1)
}

// bounds returns the least duration of a bucket, and that of the next one.
func bounds(octave, sub int) (from, to uint64) {
	if octave == 0 {
		return uint64(sub), uint64(sub) + 1
	}
	shift := octave - 1
	return uint64(subs+sub) << shift, uint64(subs+sub+1) << shift
}

// Merge counts what other has counted too.
func (h *Histogram) Merge(other *Histogram) {
	h.count += other.count
	h.sum += other.sum
	for i, theirs := range other.octaves {
		if theirs == nil {
			continue
		}
		if h.octaves[i] == nil {
			h.octaves[i] = new([subs]uint64)
		}
		for j, n := range theirs {
			h.octaves[i][j] += n
		}
	}
}

// Count returns how many durations were counted.
func (h *Histogram) Count() uint64 { return h.count }

// Sum returns the sum of them, exactly.
func (h *Histogram) Sum() time.Duration { return time.Duration(min(h.sum, math.MaxInt64)) }

// Quantile returns the duration that a part q of all does not exceed: the median
// for 0.5. It is 0 when none was counted.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := uint64(math.Ceil(min(max(q, 0), 1) * float64(h.count)))
	seen := uint64(0)
	for i, octave := range h.octaves {
		if octave == nil {
			continue
		}
		for j, n := range octave {
			if seen += n; n > 0 && seen >= rank {
				from, to := bounds(i, j)
				return time.Duration((from + to - 1) / 2)
			}
		}
	}
	return 0
}

// Below returns how many durations were less than d: exactly when d is a power of
// two nanoseconds, else without those of the bucket that d is in.
func (h *Histogram) Below(d time.Duration) uint64 {
	if d < 0 {
		return 0
	}
	if d > most {
		return h.count
	}
	last, sub := place(uint64(d))
	n := uint64(0)
	for i, octave := range h.octaves[:last+1] {
		if octave == nil {
			continue
		}
		end := subs
		if i == last {
			end = sub
		}
		for _, m := range octave[:end] {
			n += m
		}
	}
	return n
}
