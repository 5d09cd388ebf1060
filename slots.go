package plugwire

import "sync/atomic"

// A slotTable finds what belongs to a slot by its id, 1 to a limit. Entries are
// made in chunks and never move, so that a lookup takes no lock.
type slotTable[T any] struct {
	limit  uint32
	chunks []atomic.Pointer[[slotChunk]T]
}

// slotChunk is small enough that who uses a single slot owns little: a thousand
// connections that each begin one call are a thousand chunks.
const slotChunk = 64

func newSlotTable[T any](limit int) slotTable[T] {
	return slotTable[T]{uint32(limit), make([]atomic.Pointer[[slotChunk]T], (limit+slotChunk-1)/slotChunk)}
}

// at returns the entry of id, or nil when id is out of range or its chunk has
// not been made.
func (t *slotTable[T]) at(id uint32) *T {
	if id == 0 || id > t.limit {
		return nil
	}
	chunk := t.chunks[(id-1)/slotChunk].Load()
	if chunk == nil {
		return nil
	}
	return &chunk[(id-1)%slotChunk]
}

// grow returns the entry of id, making its chunk, or nil when id is out of
// range. Only one goroutine at a time may call it.
func (t *slotTable[T]) grow(id uint32) *T {
	if id == 0 || id > t.limit {
		return nil
	}
	chunk := &t.chunks[(id-1)/slotChunk]
	if chunk.Load() == nil {
		chunk.Store(new([slotChunk]T))
	}
	return t.at(id)
}

// all calls f for each entry that has been made.
func (t *slotTable[T]) all(f func(id uint32, e *T)) {
	for i := range t.chunks {
		if chunk := t.chunks[i].Load(); chunk != nil {
			for j := range chunk {
				f(uint32(i*slotChunk+j+1), &chunk[j])
			}
		}
	}
}
