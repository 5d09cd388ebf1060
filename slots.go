package plugwire

import "sync/atomic"

// A slotTable finds what belongs to a slot by its id, 1 to a limit. Entries are
// made in chunks and never move, so that a lookup takes no lock.
type slotTable[T any] struct {
	limit  uint32
	blocks []atomic.Pointer[slotBlock[T]]
}

// A slotBlock has slotChunk entries behind each of its pointers.
type slotBlock[T any] [slotBlockLen / slotChunk]atomic.Pointer[[slotChunk]T]

// Blocks and chunks are small, for who uses a single slot to own little: a
// thousand connections on which one call was begun have a thousand of each.
const (
	slotChunk    = 4
	slotBlockLen = 256
)

func newSlotTable[T any](limit int) slotTable[T] {
	return slotTable[T]{uint32(limit), make([]atomic.Pointer[slotBlock[T]], (limit+slotBlockLen-1)/slotBlockLen)}
}

// at returns the entry of id, or nil when id is out of range or its chunk has
// not been made.
func (t *slotTable[T]) at(id uint32) *T {
	if id == 0 || id > t.limit {
		return nil
	}
	id--
	block := t.blocks[id/slotBlockLen].Load()
	if block == nil {
		return nil
	}
	chunk := block[id%slotBlockLen/slotChunk].Load()
	if chunk == nil {
		return nil
	}
	return &chunk[id%slotChunk]
}

// grow returns the entry of id, making its chunk, or nil when id is out of
// range. Only one goroutine at a time may call it.
func (t *slotTable[T]) grow(id uint32) *T {
	if id == 0 || id > t.limit {
		return nil
	}
	block := &t.blocks[(id-1)/slotBlockLen]
	if block.Load() == nil {
		block.Store(new(slotBlock[T]))
	}
	chunk := &block.Load()[(id-1)%slotBlockLen/slotChunk]
	if chunk.Load() == nil {
		chunk.Store(new([slotChunk]T))
	}
	return t.at(id)
}

// all calls f for each entry that has been made.
func (t *slotTable[T]) all(f func(id uint32, e *T)) {
	for i := range t.blocks {
		block := t.blocks[i].Load()
		if block == nil {
			continue
		}
		for j := range block {
			chunk := block[j].Load()
			if chunk == nil {
				continue
			}
			for k := range chunk {
				f(uint32(i*slotBlockLen+j*slotChunk+k+1), &chunk[k])
			}
		}
	}
}
