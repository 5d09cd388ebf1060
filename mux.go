package plugwire

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

// A Handler answers the calls, and takes the one-way messages, of one method.
//
// ServeCall appends the reply to reply and returns the extended slice, which
// costs no allocation. The request is valid until ServeCall returns, and so is
// reply: neither may be kept. An error that is (or wraps) an *Error reaches the
// caller with its code, message and detail, any other as code Unknown with its
// text. A panic or runtime.Goexit ends this call alone, with code Internal.
// The reply or error of a one-way message is dropped.
//
// Handlers of calls run concurrently. A connection runs quick ones one after
// the other on the goroutine that reads; one that waits or computes for a
// millisecond or more is noticed and left alone on its goroutine while another
// reads on, and a method that does so often gets goroutines of its own. One-way
// messages of a method that arrive together, up to 32, count as one in that.
type Handler interface {
	ServeCall(r *Request, reply []byte) ([]byte, error)
}

// HandlerFunc is a function that is a Handler.
type HandlerFunc func(r *Request, reply []byte) ([]byte, error)

// ServeCall calls f.
func (f HandlerFunc) ServeCall(r *Request, reply []byte) ([]byte, error) { return f(r, reply) }

// A Mux is a set of methods: what one side of a connection serves. It may be
// shared by any number of connections and servers, and methods may be added at
// any time; open connections learn of them. Its zero value is not usable: call
// NewMux.
type Mux struct {
	table atomic.Pointer[muxTable]

	// mu serialises changes. The connections are told after it is released.
	mu    sync.Mutex
	conns map[*Conn]struct{}
}

// muxTable is immutable. Numbers are given in the order of registration, from 1,
// and never change.
type muxTable struct {
	methods  []*method // number n is methods[n-1]
	byName   map[string]*method
	fallback *method // or nil

	middleware []func(Handler) Handler // the first is the outermost
}

// method has a handler, or is a stream. It is immutable: running requests hold
// it. What changes is another one with the same name and number.
type method struct {
	name    string
	number  uint16
	handler Handler // bare within the middleware, or bare itself
	bare    Handler // what was registered
	stream  func(*Stream) error
}

// NewMux returns a Mux without methods.
func NewMux() *Mux {
	m := &Mux{conns: make(map[*Conn]struct{})}
	m.table.Store(&muxTable{byName: make(map[string]*method)})
	return m
}

// Handle makes h answer the method of the given name, 1 to 255 bytes. It panics
// when the name is taken, empty or too long, when h is nil, and when there are
// 4096 methods already.
func (m *Mux) Handle(name string, h Handler) {
	if h == nil {
		panic(fmt.Sprintf("plugwire: method %q: nil handler", name))
	}
	m.register(&method{name: name, bare: h})
}

// HandleStream makes f answer streams to the method of the given name (see
// Handle for what panics). The stream ends when f returns, with a nil error well, and
// otherwise as a Handler's call does: the opener has the error from Recv, behind the
// messages that were sent. f runs on a goroutine of its own; what it starts must
// not use the stream after it has returned.
func (m *Mux) HandleStream(name string, f func(*Stream) error) {
	if f == nil {
		panic(fmt.Sprintf("plugwire: method %q: nil handler", name))
	}
	m.register(&method{name: name, stream: f})
}

func (m *Mux) register(e *method) {
	name := e.name
	if name == "" || len(name) > maxMethodName {
		panic(fmt.Sprintf("plugwire: method name %q: must have 1 to %d bytes", name, maxMethodName))
	}
	m.change(func(t *muxTable) {
		if t.byName[name] != nil {
			panic(fmt.Sprintf("plugwire: method %q is registered already", name))
		}
		if len(t.methods) == maxMethods {
			panic(fmt.Sprintf("plugwire: method %q: a Mux holds %d methods at most", name, maxMethods))
		}
		e.number = uint16(len(t.methods) + 1)
		if e.bare != nil {
			e.handler = t.wrap(name, e.bare)
		}
		t.methods = append(t.methods[:len(t.methods):len(t.methods)], e)
		t.byName[name] = e
	})
}

// HandleFunc makes f answer the method of the given name. req is valid until f
// returns; the slice that f returns is copied before f can be called again. See
// Handle for the rest, and Handler for the form that allocates nothing.
func (m *Mux) HandleFunc(name string, f func(ctx context.Context, req []byte) ([]byte, error)) {
	m.Handle(name, HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		out, err := f(r.Context(), r.Payload())
		return append(reply, out...), err
	}))
}

// Fallback makes h answer every method that has no handler of its own;
// Request.Method tells which was called. Nil removes it.
func (m *Mux) Fallback(h Handler) {
	m.change(func(t *muxTable) {
		t.fallback = nil
		if h != nil {
			t.fallback = &method{handler: t.wrap("", h), bare: h}
		}
	})
}

// Methods returns the names of the methods in the order of their registration.
func (m *Mux) Methods() []string {
	t := m.table.Load()
	names := make([]string, len(t.methods))
	for i, e := range t.methods {
		names[i] = e.name
	}
	return names
}

// Use puts middleware around the handlers of all methods, and the fallback,
// registered before or after. The first given is the outermost: it sees a
// request first and its ending last. A further Use adds its own inside.
// Middleware is a function that gets the next handler and returns the one to
// run in its place, which ends the request itself or has next do it:
//
//	mux.Use(func(next plugwire.Handler) plugwire.Handler {
//		return plugwire.HandlerFunc(func(r *plugwire.Request, reply []byte) ([]byte, error) {
//			if r.Method() == "admin" && r.Peer().UID != 0 {
//				return reply, plugwire.Refused(plugwire.PermissionDenied, "root only")
//			}
//			return next.ServeCall(r, reply)
//		})
//	})
//
// Streams are not wrapped: a handler of HandleStream checks for itself.
//
// It sees calls and one-way messages alike, but not those that this package
// refuses itself: of a method that is not there, cancelled or past their deadline
// before they ran. A request that was received before Use returned may still be
// handled without it.
//
// Each function is called for every handler, within Use, Handle and Fallback,
// and again by later calls of Use; so what it counts belongs outside of it. It
// must not change the Mux. Use panics when a function is nil or returns nil.
func (m *Mux) Use(mw ...func(Handler) Handler) {
	for i, f := range mw {
		if f == nil {
			panic(fmt.Sprintf("plugwire: Use: middleware %d of %d is nil", i+1, len(mw)))
		}
	}
	// The names stay: connections need not be told.
	m.replace(func(t *muxTable) {
		t.middleware = append(slices.Clip(t.middleware), mw...)
		wrapped := func(e *method) *method {
			w := *e
			if e.bare != nil {
				w.handler = t.wrap(e.name, e.bare)
			}
			return &w
		}
		t.methods = slices.Clone(t.methods)
		for i, e := range t.methods {
			t.methods[i] = wrapped(e)
			t.byName[e.name] = t.methods[i]
		}
		if t.fallback != nil {
			t.fallback = wrapped(t.fallback)
		}
	})
}

// wrap builds the chain that is called for a method, "" for the fallback, so
// that a request costs one call for each layer, and nothing where there is none.
func (t *muxTable) wrap(name string, h Handler) Handler {
	for i, f := range slices.Backward(t.middleware) {
		if h = f(h); h == nil {
			if name == "" {
				name = "(fallback)"
			}
			panic(fmt.Sprintf("plugwire: method %q: middleware %d of %d returned nil", name, i+1, len(t.middleware)))
		}
	}
	return h
}

// change replaces the table by a changed copy and tells the open connections.
func (m *Mux) change(f func(*muxTable)) {
	for _, c := range m.replace(f) {
		c.announceMethods()
	}
}

// replace replaces the table by a changed copy and returns the open connections.
// When f panics or ends its goroutine, as middleware may, the table stays.
func (m *Mux) replace(f func(*muxTable)) []*Conn {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := *m.table.Load()
	t.byName = maps.Clone(t.byName)
	f(&t)
	m.table.Store(&t)
	return slices.Collect(maps.Keys(m.conns))
}

func (m *Mux) add(c *Conn) {
	m.mu.Lock()
	m.conns[c] = struct{}{}
	m.mu.Unlock()
}

func (m *Mux) remove(c *Conn) {
	m.mu.Lock()
	delete(m.conns, c)
	m.mu.Unlock()
}
