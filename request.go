package plugwire

import (
	"context"
	"sync"
	"time"
)

// Request is one call or one-way message as its Handler sees it. It is valid
// until ServeCall returns; the context that it gives out may be kept.
type Request struct {
	conn     *Conn
	method   *method
	name     string // when called by name and answered by the fallback
	payload  []byte
	deadline time.Time
	meta     Metadata
	reply    Metadata // to be sent with the reply
	in       *inCall  // the call's slot; nil for a one-way message
	reader   *reader  // the reader whose goroutine runs the handler, when it runs inline
	ctx      *requestContext
	own      context.Context // what SetContext has set
}

// Context returns the request's context, or the one that middleware has put in its
// place (SetContext). It ends when the caller's does, when the deadline passes,
// when the connection ends and when the handler returns. Its value for
// InfoFromContext describes the request.
func (r *Request) Context() context.Context {
	if r.own != nil {
		return r.own
	}
	if r.ctx == nil {
		r.ctx = r.conn.newContext(r)
	}
	return r.ctx
}

// SetContext makes ctx what Context returns from now on. Middleware calls it before
// the next handler, to hand on values (a trace, an identity) or an earlier end:
//
//	ctx, cancel := context.WithTimeout(r.Context(), time.Second)
//	defer cancel()
//	r.SetContext(ctx)
//	return next.ServeCall(r, reply)
//
// ctx must be derived from Context, so that it ends with the request and
// InfoFromContext knows it. It stays when the next handler has returned: middleware
// further out then sees it too. SetContext panics when ctx is nil.
func (r *Request) SetContext(ctx context.Context) {
	if ctx == nil {
		panic("plugwire: SetContext: nil context")
	}
	r.Context() // by which release knows that there is something to end
	r.own = ctx
}

// Method returns the name that was called.
func (r *Request) Method() string {
	if r.name != "" {
		return r.name
	}
	return r.method.name
}

// Payload returns the request's bytes. They must not be kept or changed.
func (r *Request) Payload() []byte { return r.payload }

// Peer says who sent the request.
func (r *Request) Peer() *Peer { return r.conn.peer }

// Conn returns the connection, for calling back.
func (r *Request) Conn() *Conn { return r.conn }

// Deadline returns the time when the caller stops waiting, if there is one.
func (r *Request) Deadline() (time.Time, bool) { return r.deadline, !r.deadline.IsZero() }

// OneWay reports whether nobody waits for a reply.
func (r *Request) OneWay() bool { return r.in == nil }

// Metadata returns what the caller sent along, or nil. It may be kept.
func (r *Request) Metadata() Metadata { return r.meta }

// SetReplyMetadata has md sent with the reply or error; a later one replaces it. It
// must not change until the handler has returned. Metadata that cannot be sent
// (see Metadata) makes the call fail with code Internal.
func (r *Request) SetReplyMetadata(md Metadata) { r.reply = md }

// replyMetadata returns what the handler has set, by either way.
func (r *Request) replyMetadata() Metadata {
	if r.reply == nil && r.ctx != nil {
		r.ctx.mu.Lock()
		defer r.ctx.mu.Unlock()
		return r.ctx.info.reply
	}
	return r.reply
}

// Info describes a request or stream to code that has only its context.
type Info struct {
	Method   string
	Peer     *Peer
	Conn     *Conn
	Metadata Metadata // from the caller

	ctx   *requestContext
	reply Metadata // guarded by ctx.mu
}

// SetReplyMetadata is Request.SetReplyMetadata for code that has only the
// context. After the handler has returned it does nothing.
func (i *Info) SetReplyMetadata(md Metadata) {
	if i.ctx == nil { // of a stream that this side has opened
		return
	}
	i.ctx.mu.Lock()
	defer i.ctx.mu.Unlock()
	i.reply = md
}

type infoKey struct{}

// InfoFromContext returns the Info of the request whose handler was given ctx,
// or a context derived from it.
func InfoFromContext(ctx context.Context) (*Info, bool) {
	info, ok := ctx.Value(infoKey{}).(*Info)
	return info, ok
}

// requestContext is the context of a request. User code may keep it, so it is
// never used again; contexts come from slabs, so that one costs a fraction of an
// allocation. Its channel and timer are made when somebody asks for Done.
type requestContext struct {
	info     Info
	deadline time.Time

	mu    sync.Mutex
	done  chan struct{}
	err   error
	timer *time.Timer
	after map[*func()]struct{} // what AfterFunc registered
}

// contextSlab is how many contexts are allocated together.
const contextSlab = 32

func (c *Conn) newContext(r *Request) *requestContext {
	c.slabMu.Lock()
	if len(c.slab) == 0 {
		c.slab = make([]requestContext, contextSlab)
	}
	ctx := &c.slab[0]
	c.slab = c.slab[1:]
	c.slabMu.Unlock()
	ctx.info = Info{Method: r.Method(), Peer: c.peer, Conn: c, Metadata: r.meta, ctx: ctx}
	ctx.deadline = r.deadline
	if r.in != nil {
		r.in.ctx.Store(ctx)
		if r.in.state.Load() == inCancelled { // before the context was there to be told
			ctx.cancel(context.Canceled)
		}
	} else {
		c.oneWay.ctx.Store(ctx)
	}
	if c.ended.Load() {
		ctx.cancel(context.Canceled)
	}
	return ctx
}

// Deadline implements context.Context.
func (x *requestContext) Deadline() (time.Time, bool) { return x.deadline, !x.deadline.IsZero() }

// Value implements context.Context.
func (x *requestContext) Value(key any) any {
	if key == (infoKey{}) {
		return &x.info
	}
	return nil
}

// Err implements context.Context.
func (x *requestContext) Err() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.err == nil && !x.deadline.IsZero() && x.timer == nil && !time.Now().Before(x.deadline) {
		x.err = context.DeadlineExceeded // nobody has asked for Done yet
	}
	return x.err
}

// Done implements context.Context.
func (x *requestContext) Done() <-chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.done == nil {
		x.done = make(chan struct{})
		if x.err != nil {
			close(x.done)
		} else {
			x.startTimer()
		}
	}
	return x.done
}

// startTimer makes the deadline end the context by itself. Called with mu held.
func (x *requestContext) startTimer() {
	if x.timer == nil && !x.deadline.IsZero() {
		x.timer = time.AfterFunc(time.Until(x.deadline), func() { x.cancel(context.DeadlineExceeded) })
	}
}

// AfterFunc has f called in its own goroutine when the context ends; stop takes
// that back. The context package uses it to derive contexts without a goroutine.
func (x *requestContext) AfterFunc(f func()) (stop func() bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.err != nil {
		go f()
		return func() bool { return false }
	}
	if x.after == nil {
		x.after = make(map[*func()]struct{})
	}
	key := &f
	x.after[key] = struct{}{}
	x.startTimer()
	return func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		_, there := x.after[key]
		delete(x.after, key)
		return there
	}
}

func (x *requestContext) cancel(err error) {
	x.mu.Lock()
	if x.err != nil {
		x.mu.Unlock()
		return
	}
	x.err = err
	if x.done != nil {
		close(x.done)
	}
	if x.timer != nil {
		x.timer.Stop()
	}
	after := x.after
	x.after = nil
	x.mu.Unlock()
	for f := range after {
		go (*f)()
	}
}

// release ends the context when its handler has returned.
func (r *Request) release() {
	r.reader, r.payload, r.meta, r.reply, r.own = nil, nil, nil, nil, nil
	if r.ctx == nil {
		return
	}
	r.ctx.cancel(context.Canceled)
	r.ctx = nil
	if r.in != nil {
		r.in.ctx.Store(nil)
	} else {
		r.conn.oneWay.ctx.Store(nil)
	}
}
