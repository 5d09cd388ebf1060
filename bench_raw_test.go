package plugwire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
)

// What a careful programmer writes by hand over the bare socket for one
// workload: no contexts, limits, errors or order beyond what it needs. A frame
// is a header of 12 bytes (u32 length of the payload, u32 kind, u32 id) and the
// payload, so that as many bytes travel as in ours.
const (
	rawHeaderLen = 12
	rawBuffer    = 64 << 10
	rawLong      = 4 << 10

	rawMessage = 1 // an echo service echoes it, a counting one counts it
	rawReport  = 2 // a counting service answers with its tally
)

var (
	// rawRow does calls by one caller as a lone ping-pong.
	rawRow = row{name: "raw", service: "raw-echo", connect: connectRaw}
	// rawConnectRow dials for each call.
	rawConnectRow = row{name: "raw", service: "raw-echo", connect: connectRawEach}
	// rawOneWayRow packs messages into a buffer that is written when it is full.
	// One sender does the work of all: nothing it does would be faster with more.
	rawOneWayRow = row{name: "raw", service: "raw-count", connect: connectRawOneWay, shape: oneWorker}
	// rawLockedRow packs them under a lock, so that many senders could share the
	// connection: what that costs a single one.
	rawLockedRow = row{name: "locked", service: "raw-count", connect: connectRawLocked, shape: oneWorker}
	// rawMuxRow multiplexes the calls of many callers, or the batches of one.
	rawMuxRow = row{name: "rawmux", service: "raw-echo", connect: connectRawMux}
)

func init() {
	benchServices["raw-echo"] = rawService(rawEcho)
	benchServices["raw-count"] = rawService(rawCount)
}

func oneWorker(w *workload) { w.workers = 1 }

// rawService listens and gives each connection to handle on its own goroutine.
func rawService(handle func(net.Conn) error) func(network string) (string, func(), error) {
	return func(network string) (string, func(), error) {
		addr, cleanup := "127.0.0.1:0", func() {}
		if network == "unix" {
			dir, err := os.MkdirTemp("", "plugwire-bench-")
			if err != nil {
				return "", nil, err
			}
			addr, cleanup = filepath.Join(dir, "s"), func() { os.RemoveAll(dir) }
		}
		l, err := net.Listen(network, addr)
		if err != nil {
			cleanup()
			return "", nil, err
		}
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					if err := handle(conn); err != nil && !errors.Is(err, io.EOF) {
						fmt.Fprintln(os.Stderr, "raw server:", err)
					}
				}()
			}
		}()
		return l.Addr().String(), func() { l.Close(); cleanup() }, nil
	}
}

func appendRawFrame(dst []byte, kind, id uint32, payload []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(payload)))
	dst = binary.LittleEndian.AppendUint32(dst, kind)
	dst = binary.LittleEndian.AppendUint32(dst, id)
	return append(dst, payload...)
}

// A rawReader reads as much as there is, and hands out the whole frames.
type rawReader struct {
	conn     net.Conn
	buf      []byte
	from, to int // the part of buf that holds what was read and not yet handed out
}

func newRawReader(conn net.Conn) *rawReader {
	return &rawReader{conn: conn, buf: make([]byte, rawBuffer+rawHeaderLen)}
}

// fill reads once. It is called when next has no whole frame left.
func (r *rawReader) fill() error {
	r.to = copy(r.buf, r.buf[r.from:r.to])
	r.from = 0
	if r.to >= rawHeaderLen {
		if need := rawHeaderLen + int(binary.LittleEndian.Uint32(r.buf)); need > len(r.buf) {
			r.buf = append(make([]byte, 0, need), r.buf[:r.to]...)[:need]
		}
	}
	n, err := r.conn.Read(r.buf[r.to:])
	r.to += n
	if n > 0 {
		return nil
	}
	return err
}

// next returns the next whole frame, header included, or nil.
func (r *rawReader) next() []byte {
	b := r.buf[r.from:r.to]
	if len(b) < rawHeaderLen {
		return nil
	}
	n := rawHeaderLen + int(binary.LittleEndian.Uint32(b))
	if len(b) < n {
		return nil
	}
	r.from += n
	return b[:n]
}

// rawEcho answers all frames of one read by one write.
func rawEcho(conn net.Conn) error {
	r := newRawReader(conn)
	var out []byte
	for {
		if err := r.fill(); err != nil {
			return err
		}
		out = out[:0]
		for f := r.next(); f != nil; f = r.next() {
			out = append(out, f...)
		}
		if len(out) > 0 {
			if _, err := conn.Write(out); err != nil {
				return err
			}
		}
	}
}

// rawCount walks over the messages in reads of 64 KiB. Long ones are not put
// together: that would cost a raw loop more than it has to.
func rawCount(conn net.Conn) error {
	var (
		t    tally
		buf  = make([]byte, rawBuffer+rawHeaderLen)
		have int // bytes in buf
		rest int // bytes still to come of a long message
	)
	for {
		n, err := conn.Read(buf[have:])
		if n == 0 {
			return err
		}
		b := buf[:have+n]
		if rest >= len(b) {
			if rest -= len(b); rest == 0 {
				t.add(b)
			}
			have = 0
			continue
		}
		if rest > 0 {
			t.add(b[:rest])
			b, rest = b[rest:], 0
		}
		for len(b) >= rawHeaderLen {
			n := rawHeaderLen + int(binary.LittleEndian.Uint32(b))
			if n > len(b) {
				if n > rawLong {
					b, rest = nil, n-len(b)
				}
				break
			}
			if binary.LittleEndian.Uint32(b[4:]) == rawReport {
				if _, err := conn.Write(appendRawFrame(nil, rawReport, 0, appendTally(nil, &t))); err != nil {
					return err
				}
			} else {
				t.add(b[:n])
			}
			b = b[n:]
		}
		have = copy(buf, b)
	}
}

// dialRaw connects to a server process, which may have said more than its address.
var dialRaw = net.Dial

// connectRaw is the client of a lone ping-pong.
func connectRaw(network, addr string, w workload) (*benchClient, error) {
	conn, err := dialRaw(network, addr)
	if err != nil {
		return nil, err
	}
	call := rawCaller(conn, w)
	return &benchClient{worker: func(int) func() error { return call }, close: conn.Close}, nil
}

// rawCaller returns a function that makes one call and checks its answer.
func rawCaller(conn net.Conn, w workload) func() error {
	message := appendRawFrame(nil, rawMessage, 0, make([]byte, w.size))
	answer := make([]byte, len(message))
	seq := firstSeq(0)
	return func() error {
		seq++
		stamp(message[rawHeaderLen:], seq)
		if _, err := conn.Write(message); err != nil {
			return err
		}
		for got := 0; got < len(answer); {
			n, err := conn.Read(answer[got:])
			if err != nil {
				return err
			}
			got += n
		}
		return checkStamp(answer[rawHeaderLen:], w.size, seq)
	}
}

// connectRawEach is the client that dials for each call.
func connectRawEach(network, addr string, w workload) (*benchClient, error) {
	var conn net.Conn
	return &benchClient{
		worker: func(int) func() error {
			return func() (err error) {
				if conn, err = dialRaw(network, addr); err != nil {
					return err
				}
				return rawCaller(conn, w)()
			}
		},
		between: func() error { return conn.Close() },
		close:   func() error { return nil },
	}, nil
}

// connectRawOneWay is the client that packs one-way messages.
func connectRawOneWay(network, addr string, w workload) (*benchClient, error) {
	return connectRawRecords(network, addr, w, nil)
}

// connectRawLocked is the client that packs each under a lock.
func connectRawLocked(network, addr string, w workload) (*benchClient, error) {
	return connectRawRecords(network, addr, w, new(sync.Mutex))
}

func connectRawRecords(network, addr string, w workload, mu *sync.Mutex) (*benchClient, error) {
	conn, err := dialRaw(network, addr)
	if err != nil {
		return nil, err
	}
	var (
		sent    = make([]tally, 1)
		message = make([]byte, w.size)
		buf     = make([]byte, 0, rawHeaderLen+max(rawBuffer, w.size))
		seq     = firstSeq(0)
	)
	flush := func() error {
		_, err := conn.Write(buf)
		buf = buf[:0]
		return err
	}
	send := func() error {
		for range w.batch {
			if len(buf)+rawHeaderLen+len(message) > cap(buf) {
				if err := flush(); err != nil {
					return err
				}
			}
			seq++
			stamp(message, seq)
			sent[0].add(message)
			buf = appendRawFrame(buf, rawMessage, 0, message)
		}
		return nil
	}
	sendLocked := func() error {
		for range w.batch {
			seq++
			stamp(message, seq)
			sent[0].add(message)
			mu.Lock()
			if len(buf)+rawHeaderLen+len(message) > cap(buf) {
				if err := flush(); err != nil {
					mu.Unlock()
					return err
				}
			}
			buf = appendRawFrame(buf, rawMessage, 0, message)
			mu.Unlock()
		}
		return nil
	}
	sendBulk := func() error { // nothing to pack: the message is made in place
		for range w.batch {
			seq++
			stamp(buf[rawHeaderLen:], seq)
			sent[0].add(buf)
			if _, err := conn.Write(buf); err != nil {
				return err
			}
		}
		return nil
	}
	settle := func() error {
		buf = appendRawFrame(buf, rawReport, 0, nil)
		if err := flush(); err != nil {
			return err
		}
		answer := make([]byte, rawHeaderLen+16)
		if _, err := io.ReadFull(conn, answer); err != nil {
			return err
		}
		return checkTallies(sent, answer[rawHeaderLen:])
	}
	worker := func(int) func() error { return send }
	if mu != nil {
		worker = func(int) func() error { return sendLocked }
	}
	if w.bulk {
		settleRest := settle
		worker = func(int) func() error {
			buf = appendRawFrame(buf[:0], rawMessage, 0, message)
			return sendBulk
		}
		settle = func() error { buf = buf[:0]; return settleRest() }
	}
	return &benchClient{worker: worker, settle: settle, close: conn.Close}, nil
}

// A rawMux multiplexes calls. Callers append to pending; one of them at a time
// writes what has gathered, while the others append to the other buffer.
type rawMux struct {
	conn  net.Conn
	slots []rawSlot

	mu      sync.Mutex
	pending []byte // what is to be written next
	spare   []byte // the other buffer, unless somebody is writing it
	writing bool
}

// A rawSlot is where the reader puts the answer to the call of that id.
type rawSlot struct {
	answer []byte
	waiter *rawWaiter
}

// A rawWaiter is woken by each batch-th answer. left is the reader's.
type rawWaiter struct {
	batch, left int
	done        chan struct{}
}

// write adds what add appends to what is to be written, and writes it unless somebody else does.
func (m *rawMux) write(add func(dst []byte) []byte) error {
	m.mu.Lock()
	m.pending = add(m.pending)
	m.mu.Unlock()
	runtime.Gosched() // others that are about to append do so first
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.writing {
		return nil
	}
	m.writing = true
	defer func() { m.writing = false }()
	for len(m.pending) > 0 {
		out := m.pending
		m.pending = m.spare[:0]
		m.mu.Unlock()
		_, err := m.conn.Write(out)
		m.mu.Lock()
		m.spare = out
		if err != nil {
			return err
		}
	}
	return nil
}

// read delivers answers until the connection ends, then wakes everybody.
func (m *rawMux) read() {
	r := newRawReader(m.conn)
	for r.fill() == nil {
		for f := r.next(); f != nil; f = r.next() {
			s := &m.slots[binary.LittleEndian.Uint32(f[8:])]
			s.answer = append(s.answer[:0], f[rawHeaderLen:]...)
			if s.waiter.left--; s.waiter.left == 0 {
				s.waiter.left = s.waiter.batch
				s.waiter.done <- struct{}{}
			}
		}
	}
	for i := range m.slots {
		m.slots[i].answer = nil
		select {
		case m.slots[i].waiter.done <- struct{}{}:
		default:
		}
	}
}

// connectRawMux is the client of w.workers callers, each of which has w.batch calls in flight.
func connectRawMux(network, addr string, w workload) (*benchClient, error) {
	conn, err := dialRaw(network, addr)
	if err != nil {
		return nil, err
	}
	m := &rawMux{conn: conn, slots: make([]rawSlot, w.workers*w.batch)}
	for i := range m.slots {
		if i%w.batch == 0 {
			m.slots[i].waiter = &rawWaiter{batch: w.batch, left: w.batch, done: make(chan struct{}, 1)}
		} else {
			m.slots[i].waiter = m.slots[i-1].waiter
		}
	}
	var reader sync.WaitGroup
	reader.Go(m.read)
	return &benchClient{
		worker: func(i int) func() error { return m.caller(i, w) },
		close:  func() error { err := conn.Close(); reader.Wait(); return err },
	}, nil
}

// caller returns a function that makes w.batch calls at once and checks their answers.
func (m *rawMux) caller(worker int, w workload) func() error {
	message := make([]byte, w.size)
	seq := firstSeq(worker)
	slots := m.slots[worker*w.batch:][:w.batch]
	add := func(dst []byte) []byte {
		for i := range slots {
			seq++
			stamp(message, seq)
			dst = appendRawFrame(dst, rawMessage, uint32(worker*w.batch+i), message)
		}
		return dst
	}
	return func() error {
		if err := m.write(add); err != nil {
			return err
		}
		<-slots[0].waiter.done
		for i := range slots {
			if err := checkStamp(slots[i].answer, w.size, seq-uint64(len(slots)-1-i)); err != nil {
				return err
			}
		}
		return nil
	}
}
