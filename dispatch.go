package plugwire

import (
	"fmt"
	"runtime/debug"
)

// Dispatch: where a handler runs, and what becomes of it.

// A placement decides where a method's handler runs: inline, until it is caught
// waiting slowAfter times within slowRuns runs; then on workers for a while.
type placement struct {
	runs, caught int
	workerRuns   int // how many more calls go to workers
	penalty      int // how many the next time
}

const (
	slowAfter      = 3
	slowRuns       = 1024
	maxSlowPenalty = 64 << 10
)

func (c *Conn) placementOf(m *method) *placement {
	for int(m.number) >= len(c.placements) {
		c.placements = append(c.placements, placement{penalty: slowRuns})
	}
	return &c.placements[m.number]
}

// inline reports whether the next run of the method may be on the reader's goroutine.
func (p *placement) inline() bool {
	if p.workerRuns > 0 {
		p.workerRuns--
		return false
	}
	if p.runs++; p.runs >= slowRuns {
		p.runs, p.caught = 0, 0
	}
	return true
}

// caught notes that a handler waited while it ran inline. The new holder of the
// role calls it.
func (c *Conn) caught(m *method) {
	s := c.placementOf(m)
	if s.caught++; s.caught >= slowAfter {
		s.runs, s.caught = 0, slowAfter-1 // tried again later, once
		s.workerRuns = s.penalty
		s.penalty = min(2*s.penalty, maxSlowPenalty)
	}
}

// dispatch runs a call's handler, inline or, as with a request in several
// frames, on a worker; mine is false when the role was taken over.
func (rd *reader) dispatch(in *inCall) (mine bool) {
	c, m := rd.c, in.req.method
	if m == nil || m.handler == nil {
		text := "no method %q"
		if m != nil {
			text = "method %q is a stream, it cannot be called"
		}
		rd.refuse(in, &Error{Code: Unimplemented, Message: fmt.Sprintf(text, in.req.Method()), notRun: true})
		return true
	}
	if err := in.late(); err != nil {
		rd.refuse(in, err)
		return true
	}
	if in.whole.total > 0 || rd.isCongested() || !c.placementOf(m).inline() {
		c.keep(in)
		if in.whole.total == 0 {
			if n := len(in.req.payload); n > uncounted {
				if !c.cfg.budget.take(n) {
					rd.refuse(in, errServerFull)
					return true
				}
				in.held = n
			}
			in.copied = getCopy(len(in.req.payload))
			*in.copied = append(*in.copied, in.req.payload...)
			in.req.payload = *in.copied
		}
		c.workers.run(in)
		return true
	}
	rd.in, rd.clock = in, 0
	room := rd.replyRoom()
	rd.enter(m, &in.req, stretch{})
	out, err := invoke(m, &in.req, room)
	return rd.handled(in, out, err)
}

// enter marks the role as in a handler: that of the frame that was taken in last,
// or those of a stretch that begins at rd.r. From here to leave, the reader belongs
// to whoever takes the role over. The monitor sees to it that nothing waits for
// the handler for long.
func (rd *reader) enter(m *method, r *Request, s stretch) {
	c, n, k := rd.c, &rd.c.oneWay, &rd.mark
	r.reader, rd.current = rd, m
	k.r, k.noteBytes, k.noteMsgs, k.gotBytes, k.gotMsgs = rd.r, rd.noteBytes, rd.noteMsgs, n.gotBytes, n.gotMsgs
	k.stretch = s
	rd.word = nextRole(c.role.Load(), roleHandler)
	c.role.Store(rd.word)
	if !c.watched.Load() {
		c.watch()
	}
}

// leave takes the role back, or reports that a stand-in has it.
func (rd *reader) leave() bool {
	c := rd.c
	if c.role.CompareAndSwap(rd.word, rd.word&^roleMask|roleReading) {
		return true
	}
	c.taking.Lock() // until what the stand-in does to this reader is done
	defer c.taking.Unlock()
	return false
}

// handled sends the reply of a handler that ran inline.
func (rd *reader) handled(in *inCall, out []byte, err error) (mine bool) {
	c := rd.c
	if !rd.leave() {
		c.respond(in, out, err)
		rd.releaseBuffer()
		return false
	}
	meta := in.req.replyMetadata()
	if err == nil && !c.oneFrame(out, meta) { // goes out in fragments, with waiting
		c.keep(in)
		if len(out) <= maxFrame { // it may be the payload, which lies in the read buffer
			out = append([]byte(nil), out...)
		}
		in.req.release()
		in.req.reply = meta // which is sent with it
		in.result, in.err, in.ready = out, err, true
		rd.out = rd.out[:len(rd.out):len(rd.out)] // out may lie behind it
		c.workers.run(in)
		return true
	}
	rd.respond(in, out, err)
	return true
}

// run is a worker's work on a call that was given to it.
func (in *inCall) run() {
	c := in.conn
	if in.ready {
		out, err := in.result, in.err
		in.result, in.err, in.ready = nil, nil, false
		c.respond(in, out, err)
		return
	}
	if err := in.late(); err != nil {
		in.whole.drop()
		c.respond(in, nil, err)
		return
	}
	if in.whole.total > 0 {
		buf := in.whole.join(getLarge())
		in.copied, in.req.payload = &buf, buf
	}
	var room []byte
	if len(in.req.payload) > maxFrame { // a large reply is likely too
		room = getLarge()
	}
	out, err := invoke(in.req.method, &in.req, room)
	c.respond(in, out, err)
	putLarge(room)
}

// invoke runs a handler. A panic becomes an error; a Goexit ends this goroutine
// when invoke's deferred function returns, so others take over its duties.
func invoke(m *method, r *Request, reply []byte) (out []byte, err error) {
	returned := false
	defer func() {
		if returned {
			return
		}
		if p := recover(); p != nil {
			out, err = reply, r.conn.panicked(r.Method(), p)
			return
		}
		x := &exited{in: r.in, rd: r.reader, c: r.conn}
		x.c.workers.run(x)
	}()
	if limit := r.conn.cfg.rate; limit != nil {
		err = limit.admit(r)
	}
	if out = reply; err == nil {
		out, err = m.handler.ServeCall(r, reply)
	}
	returned = true
	return out, err
}

var errHandlerPanic = &Error{Code: Internal, Message: "the handler panicked"}

// panicked logs a handler's panic, which is this side's business, and returns
// what the caller learns of it.
func (c *Conn) panicked(method string, p any) error {
	if c.cfg.Logger != nil {
		c.cfg.Logger.Error("plugwire: handler panicked", "method", method, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	}
	return errHandlerPanic
}

// exited goes on for a goroutine that a handler ended by runtime.Goexit.
type exited struct {
	in *inCall // nil for a one-way message
	rd *reader // nil on a worker
	c  *Conn
}

var errHandlerExit = &Error{Code: Internal, Message: "the handler ended its goroutine"}

func (x *exited) run() {
	mine := false
	switch {
	case x.in == nil && x.rd == nil:
		x.c.noteQueued()
		return
	case x.in == nil:
		mine = x.rd.noted()
	case x.rd == nil:
		x.c.respond(x.in, nil, errHandlerExit)
		return
	default:
		mine = x.rd.handled(x.in, nil, errHandlerExit)
	}
	if mine {
		x.rd.run()
	}
}
