package plugwire

import (
	"context"
	"fmt"
	"maps"
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
// reads on, and a method that does so often gets goroutines of its own.
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
}

// method has a handler, or is a stream.
type method struct {
	name    string
	number  uint16
	handler Handler
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
	m.register(&method{name: name, handler: h})
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
			t.fallback = &method{handler: h}
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

// change replaces the table by a changed copy and tells the open connections.
func (m *Mux) change(f func(*muxTable)) {
	m.mu.Lock()
	t := *m.table.Load()
	t.byName = maps.Clone(t.byName)
	func() {
		defer func() {
			if p := recover(); p != nil {
				m.mu.Unlock()
				panic(p)
			}
		}()
		f(&t)
	}()
	m.table.Store(&t)
	conns := make([]*Conn, 0, len(m.conns))
	for c := range m.conns {
		conns = append(conns, c)
	}
	m.mu.Unlock()
	for _, c := range conns {
		c.announceMethods()
	}
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
