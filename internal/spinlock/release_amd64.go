//go:build gc && !race && !purego

package spinlock

// release is an ordinary store, for on this processor no other processor sees a store
// before those that precede it. The compiler knows that of no store in Go but of
// atomic ones, which are locked instructions here.
//
//go:noescape
func release(held *uint32)
