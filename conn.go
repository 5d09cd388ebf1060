package plugwire

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/plugwire/plugwire/internal/batch"
	"github.com/plugwire/plugwire/internal/sockio"
)

// A Conn is one multiplexed connection. After the handshake both ends are
// equal: each calls methods of the other, sends it one-way messages, and serves
// its own. All methods are safe for concurrent use.
type Conn struct {
	nc      net.Conn
	sealer  sealer          // nc when it is encrypted, else nil
	raw     syscall.RawConn // of nc, or of what is below the encryption, for reading; nil when there is none
	cfg     *Config
	mux     *Mux // what this side serves; never nil
	peer    *Peer
	shared  *shared
	theirs  atomic.Pointer[peerMethods]
	recent  atomic.Pointer[peerMethod] // the last one called: often the next one too
	limits  limits                     // announced by the other side: what this side may send
	version int                        // of the application's protocol

	metadata, streams bool // features that were agreed on

	// What is sent, and the lock that guards the opener's state: see call.go
	// and oneway.go. Under it nothing blocks and no user code runs.
	out      *batch.Writer
	calls    slotTable[outCall] // this side's calls
	free     []uint32           // slots that were used before and are free
	used     uint32             // slots that were ever used
	reserved int                // request bytes of this side's calls in flight
	large    largeMessages      // of streams
	admit    batch.Gate         // calls that wait for a slot or for request bytes
	notes    outNotes           // this side's one-way messages
	life     lifecycle          // what may still be opened, and by whom
	cancels  []uint32           // slots whose CANCEL is to be sent
	dirty    []*Stream          // those whose CREDIT is to be sent

	// Counters, see stats.go.
	callsSent, callsServed, callsEnded                    uint64
	streamsOpen, streamsOpened, streamsServed, streamSent uint64 // streamSent: messages
	stalls                                                Stalls
	callRecords                                           []*methodRecord // by the other side's method number

	announce bool    // METHODS is to be sent
	pong     bool    // PONG is to be sent
	pingData [8]byte // what it returns
	pings    map[uint64]chan struct{}
	pingLast uint64
	pingSend bool

	// What is received: see read.go for who may touch what. Fields without
	// atomics belong to the holder of the reading role.
	role          atomic.Uint64
	watched       atomic.Bool // the monitor looks at role
	taking        sync.Mutex  // held while a stand-in takes the role
	lastRole      uint64      // what the monitor saw last
	quiet         int         // and how often
	reader        *reader
	serving       slotTable[inCall] // the other side's calls
	servingCount  atomic.Int64      // of them, those that have not ended
	servingBytes  atomic.Int64      // and their request bytes
	arriving      atomic.Int64      // bytes of incomplete messages that the Server's budget counts
	unsettled     atomic.Bool       // there are others whose endings the reader has not passed on
	oneWay        inNotes           // the other side's one-way messages
	methodsComing *peerMethods
	placements    []placement
	expecting     atomic.Int64 // goroutines that wait for something to be received
	crowd         atomic.Bool  // several calls were in flight when the last endings came: one alone is no sign of a lone caller

	workers workers
	slabMu  sync.Mutex
	slab    []requestContext

	ended   atomic.Bool // the connection is over, or this side's Close has begun
	endOnce sync.Once
	errMu   sync.Mutex
	err     error
	eof     chan struct{} // closed when nothing more will be read
	done    chan struct{} // closed when everything is over
	after   func()        // called then, or nil; guarded by out's lock

	reads, readBytes        atomic.Uint64
	streamsTaken, streamGot atomic.Uint64 // streams of the other side; messages of streams
	shard                   *methodShard  // where calls are counted by method, or nil

	// Of the holder of the reading role.
	servedRecords []*methodRecord // by this side's method number
	served        []servedCalls   // calls that are to be counted

	alive *time.Timer // of keepalive, or nil; guarded by out's lock
}

// NewConn runs the dialling side of the handshake on nc, within ctx and
// Config.HandshakeTimeout, and returns the connection, which owns nc from then
// on; nc is closed when the handshake fails. The context bounds the handshake
// only.
func NewConn(ctx context.Context, nc net.Conn, cfg *Config) (*Conn, error) {
	return open(ctx, nc, true, "", cfg.inRole(asDialler).withDefaults())
}

// open runs the handshake in either role and starts the connection.
func open(ctx context.Context, nc net.Conn, dialler bool, addr string, cfg *Config) (conn *Conn, err error) {
	if addr == "" {
		addr = addrURI(nc.RemoteAddr())
	}
	if cfg.LogTransport {
		begun := time.Now()
		defer func() { cfg.logHandshake(addr, conn, err, time.Since(begun)) }()
	}
	peer, err := authorize(nc, dialler, cfg)
	if err != nil {
		refusePeer(ctx, nc, dialler, cfg, err)
		nc.Close()
		err = handshakeError(addr, err)
		cfg.metrics.failed(nc.RemoteAddr().Network(), err)
		return nil, err
	}
	nc.SetDeadline(time.Now().Add(cfg.HandshakeTimeout)) // before ctx can move it
	moved := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)); close(moved) })
	nc2, err := cfg.secure(ctx, nc, dialler, hostOf(addr), peer)
	if err == nil && cfg.hasTLS() {
		if err = cfg.askAuthorize(peer); err != nil {
			refusePeer(ctx, nc2, dialler, cfg, err)
		}
	}
	if why := cfg.Need.lacks(peer, cfg.hasTLS()); err == nil && why != "" {
		err = &Error{Code: PermissionDenied, Message: "Config." + why}
		refusePeer(ctx, nc2, dialler, cfg, err)
	}
	var theirs *hello
	var app int
	if err == nil {
		nc2, theirs, app, err = handshake(nc2, dialler, cfg)
	}
	if !stop() {
		<-moved
		if err == nil && !dialler { // the other side knows that it is connected
			nc.SetDeadline(time.Time{})
		} else {
			err = ctx.Err()
		}
	}
	if err != nil {
		peer.process.Close()
		nc.Close()
		err = handshakeError(addr, err)
		cfg.metrics.failed(peer.Transport, err)
		return nil, err
	}
	c := newConn(nc2, peer, theirs, app, cfg)
	if cfg.OnConn != nil && !dialler {
		cfg.OnConn(c)
	}
	c.start()
	return c, nil
}

// hostOf returns the host of an address that has one, else "".
func hostOf(addr string) string {
	rest, ok := strings.CutPrefix(addr, "tcp://")
	if !ok {
		return ""
	}
	host, _, err := net.SplitHostPort(rest)
	if err != nil {
		return ""
	}
	return host
}

func handshakeError(addr string, err error) error {
	var e *Error
	if errors.As(err, &e) && (e.Op == "" || e.Op == "handshake" && e.Addr == "") {
		e.Op, e.Addr, e.notRun = "handshake", addr, true
		return e
	}
	code := Unavailable
	switch {
	case e != nil:
		code = e.Code
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		code = DeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = Canceled
	}
	return &Error{Code: code, Op: "handshake", Addr: addr, Err: err, notRun: true}
}

func newConn(nc net.Conn, peer *Peer, theirs *hello, app int, cfg *Config) *Conn {
	c := &Conn{nc: nc, cfg: cfg, mux: cfg.Mux, peer: peer, limits: theirs.limits, version: app,
		eof: make(chan struct{}), done: make(chan struct{})}
	if c.mux == nil {
		c.mux = emptyMux
	}
	c.shared = sharedHere(c.done)
	c.metadata, c.streams = theirs.has(featureMetadata), theirs.has(featureStreams)
	var seal func(dst, plain []byte) ([]byte, error)
	if s, ok := nc.(sealer); ok {
		s.goLive()
		c.sealer, nc, seal = s, s.below(), s.seal
	}
	c.raw = rawConnOf(nc)
	c.limits.calls = min(c.limits.calls, maxCallsBound) // no need to use all that there are
	// So that a message which is too large is never one that fits a frame: those
	// are sent without a look at the other limit.
	c.limits.frame = min(c.limits.frame, c.limits.message)
	c.calls = newSlotTable[outCall](c.limits.calls)
	c.serving = newSlotTable[inCall](cfg.slots())
	c.out = batch.New(nc, batch.Config{Control: c.appendControl, Seal: seal, Go: c.write, Failed: c.writeFailed, Timeout: cfg.WriteTimeout})
	c.workers.parked = c.watch
	c.reader = newReader(c)
	c.role.Store(roleReading) // start's, so that nobody who uses c in OnConn takes it
	cfg.metrics.join(c)
	return c
}

var emptyMux = NewMux()

// start announces the methods and begins to read.
func (c *Conn) start() {
	if c.mux != emptyMux {
		c.mux.add(c)
		if c.ended.Load() { // OnConn has closed it, perhaps before it was added
			c.mux.remove(c)
		}
	}
	c.announceMethods()
	c.workers.run(c.reader)
	c.startKeepAlive()
}

// pendingWrites is the work on what has to be written and nobody waits for.
type pendingWrites batch.Writer

func (w *pendingWrites) run() { (*batch.Writer)(w).Run() }

// write has a worker write what is pending.
func (c *Conn) write(w *batch.Writer) { c.workers.run((*pendingWrites)(w)) }

// rawConnOf returns what reads can be made on without waiting in them.
func rawConnOf(nc net.Conn) syscall.RawConn {
	if sc, ok := nc.(syscall.Conn); ok && sockio.Available {
		if raw, err := sc.SyscallConn(); err == nil {
			return raw
		}
	}
	return nil
}

// appendControl appends the frames that say how things stand. The batch writer
// calls it, under its lock, whenever it makes a batch.
func (c *Conn) appendControl(b []byte) []byte {
	if c.life.said {
		return b
	}
	if c.announce {
		c.announce = false
		b = appendMethods(b, c.mux.table.Load(), c.limits.frame)
	}
	for _, id := range c.cancels {
		if e := c.calls.at(id); e.cancel { // its ending has not come meanwhile
			e.cancel = false
			b = appendFrameHeader(b, FrameHeader{Type: FrameCancel, ID: id})
		}
	}
	c.cancels = c.cancels[:0]
	b = c.notes.appendAsk(b)
	b = c.oneWay.appendCredit(b)
	b = c.appendStreamCredit(b)
	if c.pong {
		c.pong = false
		b = appendFrameHeader(b, FrameHeader{Type: FramePong, Length: 8})
		b = append(b, c.pingData[:]...)
	}
	if c.pingSend {
		c.pingSend = false
		b = appendFrameHeader(b, FrameHeader{Type: FramePing, Length: 8})
		for i := range 8 {
			b = append(b, byte(c.pingLast>>(8*i)))
		}
	}
	return c.life.appendGoAway(b)
}

// Peer says who is on the other side, as far as the kernel or TLS verified it.
func (c *Conn) Peer() *Peer { return c.peer }

// Version returns the version of the application's protocol that both sides
// agreed on: the highest that both list in Config.Versions, or 0 when either lists none.
func (c *Conn) Version() int { return c.version }

// LocalAddr returns the underlying connection's local address.
func (c *Conn) LocalAddr() net.Addr { return c.nc.LocalAddr() }

// RemoteAddr returns the underlying connection's remote address.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// Done is closed when the connection is over, for whatever reason.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns nil while the connection is open, net.ErrClosed (wrapped) after
// Close or Shutdown on this side, an error that wraps io.EOF when the other
// side closed in order, and otherwise what went wrong.
func (c *Conn) Err() error {
	c.errMu.Lock()
	defer c.errMu.Unlock()
	return c.err
}

// Ping asks the other side for a sign of life and returns how long it took.
func (c *Conn) Ping(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	ch := make(chan struct{})
	c.out.Lock()
	if c.life.ended {
		c.out.Unlock()
		return 0, c.Err()
	}
	if c.pings == nil {
		c.pings = make(map[uint64]chan struct{})
	}
	c.pingLast++
	id := c.pingLast
	c.pings[id] = ch
	c.pingSend = true
	c.out.Signal()
	c.out.Unlock()
	c.expecting.Add(1)
	defer c.expecting.Add(-1)
	c.out.Flush()
	c.ensureReader()
	select {
	case <-ch:
		if err := c.Err(); err != nil {
			return 0, err
		}
		return time.Since(start), nil
	case <-ctx.Done():
		c.out.Lock()
		delete(c.pings, id)
		c.out.Unlock()
		return 0, ctx.Err()
	}
}

// ponged ends every Ping up to the one that the PONG answers: only the latest
// PING must be answered.
func (c *Conn) ponged(id uint64) {
	c.out.Lock()
	defer c.out.Unlock()
	for n, ch := range c.pings {
		if n <= id && id <= c.pingLast {
			close(ch)
			delete(c.pings, n)
		}
	}
}
