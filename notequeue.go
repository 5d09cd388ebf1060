package plugwire

import (
	"context"
	"encoding/binary"
	"slices"
)

// One-way messages whose handlers do not run inline wait in a queue, which one
// goroutine at a time works off.

// note is a one-way message.
type note struct {
	method  *method // nil: nobody is there
	name    string  // of a message for a fallback handler
	payload []byte
	parts   assembly // of a payload that is still to be put together
	dropped int      // bytes of a message that was aborted, and only counts
	held    int      // bytes to give back to the Server's budget
}

// notes is an element of the queue: messages of one frame that lie one behind the
// other, so that each takes little more than its bytes, for the window counts those;
// or a single message of another kind.
type notes struct {
	packed  []byte
	at      int       // where those begin that are still to be handled
	owner   *[]byte   // of packed, from getCopy
	methods []*method // theirs; a message has its method's place here
	single  *note     // or nil: packed
}

const (
	// packedHeader is what precedes a payload in notes: its length (u32), the place of
	// its method (u8) and the length of its name (u8), which follows.
	packedHeader = 6
	// packedMethods is how many methods' messages may lie together: they are searched.
	packedMethods = 16
)

// pack adds a message of one frame behind the others, if it has room there. What a
// handler works on stays where it is.
func (q *notes) pack(nt note) bool {
	place := slices.Index(q.methods, nt.method)
	need := len(q.packed) + packedHeader + len(nt.name) + len(nt.payload)
	switch {
	case place < 0 && len(q.methods) == packedMethods:
		return false
	case len(q.packed) > 0 && (need > maxFrame || q.at > 0 && need > cap(q.packed)):
		return false
	case need > cap(q.packed):
		q.grow(need)
	}
	if place < 0 {
		place = len(q.methods)
		q.methods = append(q.methods, nt.method)
	}
	b := binary.LittleEndian.AppendUint32(q.packed, uint32(len(nt.payload)))
	b = append(b, byte(place), byte(len(nt.name)))
	q.packed = append(append(b, nt.name...), nt.payload...)
	return true
}

// grow gives the messages a buffer for that many bytes.
func (q *notes) grow(need int) {
	old := q.owner
	q.owner = getCopy(need)
	q.packed = append(*q.owner, q.packed...)
	if old != nil {
		putCopy(old)
	}
}

// next takes the first message out; last says that no other is left.
func (q *notes) next() (nt note, last bool) {
	if q.single != nil {
		return *q.single, true
	}
	b := q.packed[q.at:]
	name := packedHeader + int(b[5]) // where it ends
	end := name + int(binary.LittleEndian.Uint32(b))
	q.at += end
	return note{method: q.methods[b[4]], name: string(b[packedHeader:name]), payload: b[name:end:end]}, q.at == len(q.packed)
}

// addNote returns the queue with a copy of the message at its end.
func addNote(queue []notes, nt note) []notes {
	if nt.dropped > 0 || nt.parts.total > 0 {
		one := nt // nt itself must not escape
		return append(queue, notes{single: &one})
	}
	if last := len(queue) - 1; last >= 0 && queue[last].single == nil && queue[last].pack(nt) {
		return queue
	}
	var q notes
	q.pack(nt)
	return append(queue, q)
}

// queue has a message handled on another goroutine, behind those that are.
func (rd *reader) queue(nt note) {
	c := rd.c
	if c.oneWay.busy.Load() && c.enqueue(nt) {
		return
	}
	c.oneWay.busy.Store(true)
	c.enqueue(nt)
	c.workers.run((*noteRunner)(c))
}

// enqueue adds a copy of a message to the queue, unless the queue's goroutine has just ended.
func (c *Conn) enqueue(nt note) bool {
	n := &c.oneWay
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.busy.Load() {
		return false
	}
	n.queue = addNote(n.queue, nt)
	return true
}

// noteQueue handles queued messages, in order, until there are none.
func (c *Conn) noteQueue() {
	n := &c.oneWay
	for {
		n.mu.Lock()
		if len(n.queue) == 0 {
			n.queue = nil
			n.busy.Store(false)
			n.mu.Unlock()
			c.out.Flush()
			return
		}
		var done notes // what has been handled in whole, once this message is
		nt, last := n.queue[0].next()
		if last {
			done, n.queue[0] = n.queue[0], notes{}
			n.queue = n.queue[1:]
		}
		n.mu.Unlock()
		if nt.parts.total > 0 {
			nt.payload = nt.parts.join(getLarge())
		}
		n.running, n.runningHeld = len(nt.payload)+nt.dropped, nt.held
		if nt.method != nil {
			r := Request{conn: c, method: nt.method, name: nt.name, payload: nt.payload}
			invoke(nt.method, &r, nil)
			r.release()
		}
		if nt.parts.total > 0 {
			putLarge(nt.payload)
		} else if done.owner != nil {
			*done.owner = done.packed
			putCopy(done.owner)
		}
		c.noteDone()
	}
}

// noteDone is called when the queue's goroutine has handled a message.
func (c *Conn) noteDone() {
	c.cfg.budget.give(c.oneWay.runningHeld)
	c.noteHandled(uint64(c.oneWay.running), 1)
	c.flushIfDue()
}

// flushIfDue sends credit that has become due, for the sender may wait for it.
func (c *Conn) flushIfDue() {
	c.out.Lock()
	due := c.oneWay.due
	c.out.Unlock()
	if due {
		c.out.Flush()
	}
}

// noteRunner is the worker's work on the queue.
type noteRunner Conn

func (r *noteRunner) run() { (*Conn)(r).noteQueue() }

// noteQueued goes on with the queue after a handler that ended its goroutine.
func (c *Conn) noteQueued() {
	if ctx := c.oneWay.ctx.Swap(nil); ctx != nil {
		ctx.cancel(context.Canceled)
	}
	c.noteDone()
	c.noteQueue()
}
