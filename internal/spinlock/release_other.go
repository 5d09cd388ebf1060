//go:build !amd64 || !gc || race || purego

package spinlock

import "sync/atomic"

func release(held *uint32) { atomic.StoreUint32(held, 0) }
