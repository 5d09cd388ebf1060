package plugwire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/plugwire/plugwire/internal/sockio"
)

const (
	// batchReplies and batchBytes bound the replies that leave together.
	batchReplies = 64
	batchBytes   = 32 << 10
	// congested is how many bytes may be unsent before handlers no longer run inline.
	congested = 192 << 10
)

type readBuffer [frameHeaderLen + maxFrame]byte

var readBuffers = sync.Pool{New: func() any { return new(readBuffer) }}

// A reader is the state of the reading role: a buffer, of which buf[r:w] is not
// yet taken in, and what is to be settled after the frames in it. It passes
// from goroutine to goroutine with the role. A handler that runs on the
// goroutine of a reader whose role is taken over keeps that reader, and the
// stand-in gets a new one.
type reader struct {
	c    *Conn
	head FrameHeader // of the frame at hand
	buf  *readBuffer // nil while there is nothing in it
	r, w int

	endings   int64    // of own calls, taken in since the last settling
	freed     []uint32 // their slots
	noteBytes uint64   // one-way messages handled inline since then
	noteMsgs  uint64
	delivered bool // the last frames had endings of own calls
	served    bool // or calls and messages of the other side's
	streamed  bool // or were a stream's
	stay      int  // batches of streams' frames for which the role is not let go
	found     bool // the monitor has found the role free for a while

	control   int       // frames that are no messages, taken in since the last that was one
	controlAt time.Time // when a multiple of controlRun was last reached
	fast      int       // how many times that came soon after the time before

	out       []byte  // frames that end calls whose handlers ran inline
	outOwner  *[]byte // of replyBuffers, while out has come from there
	put       int     // how many
	unsettled bool    // calls have run whose endings may still be in out
	made      int     // how many have been made since the last flush
	congested bool    // they do not leave fast enough

	// Of the handler that runs inline.
	word     uint64 // the role word meanwhile
	mark     mark   // where a stand-in goes on
	current  *method
	in       *inCall // or nil: note
	note     Request
	noteSize int
	begun    int  // of a stretch: how many handlers have been started
	dropRest bool // of the stretch that was taken over

	requests, clock time.Duration // of readAt and endedAt; 0: not known

	// Of fill and receive.
	readFunc func(fd uintptr) bool
	direct   *directInput // where receive reads to; nil: to space
	waited   bool         // for something to arrive
	n        int
	err      error
}

func newReader(c *Conn) *reader {
	rd := &reader{c: c}
	rd.readFunc = rd.readRaw
	return rd
}

// errPoked is what fill and fillDirect return when the monitor asked the borrower to let go.
var errPoked = errors.New("plugwire: poked")

// maxEmptyReads is how many reads in a row may give neither bytes nor an error:
// an empty write at the other end of a net.Pipe is one.
const maxEmptyReads = 100

// fill reads once, waiting until there is something. An idle connection holds
// no buffer while it waits, where the platform can wait without one.
func (rd *reader) fill() error {
	c := rd.c
	if rd.r > 0 {
		if rd.buf != nil {
			copy(rd.buf[:], rd.buf[rd.r:rd.w])
		}
		rd.r, rd.w = 0, rd.w-rd.r
	}
	var err error
	if c.sealer != nil {
		err = rd.receiveSealed()
	} else {
		err = rd.receive(c.nc)
	}
	if rd.n > 0 {
		rd.w += rd.n
		c.reads.Add(1)
		c.readBytes.Add(uint64(rd.n))
		return nil
	}
	return rd.noBytes(err)
}

// noBytes says what it means that receive gave nothing but err.
func (rd *reader) noBytes(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		rd.c.nc.SetReadDeadline(time.Time{})
		return errPoked
	case err == nil && rd.c.raw != nil:
		return io.EOF
	case err == nil:
		return io.ErrNoProgress
	}
	return err
}

// receive makes one successful read call, to space, on nc or its descriptor, and
// sets rd.n to what it gave.
func (rd *reader) receive(nc net.Conn) (err error) {
	rd.n, rd.err, rd.waited = 0, nil, false
	if rd.c.raw != nil {
		if err = rd.c.raw.Read(rd.readFunc); err == nil {
			err = rd.err
		}
		return err
	}
	b := rd.space()
	for empty := 0; rd.n == 0 && err == nil && empty < maxEmptyReads; empty++ {
		rd.n, err = nc.Read(b)
	}
	return err
}

// readRaw is the callback of receive: false has the runtime wait until the
// descriptor is readable and call again.
func (rd *reader) readRaw(fd uintptr) bool {
	again := false
	if rd.direct != nil {
		rd.n, again, rd.err = rd.direct.read(fd, rd.waited)
	} else {
		rd.n, again, rd.err = sockio.Read(fd, rd.space(), rd.waited)
	}
	if again {
		rd.waited = true
		if rd.c.sealer != nil {
			rd.c.sealer.received(0)
		}
		if rd.w == 0 {
			rd.releaseBuffer()
		}
	}
	return !again
}

// space returns where to read to.
func (rd *reader) space() []byte {
	if s := rd.c.sealer; s != nil {
		return s.space()
	}
	rd.ensureBuffer()
	return rd.buf[rd.w:]
}

// receiveSealed is receive on an encrypted connection: rd.n is what was in the
// records that have come, perhaps with an earlier read.
func (rd *reader) receiveSealed() (err error) {
	s := rd.c.sealer
	for {
		rd.ensureBuffer()
		if rd.n, err = s.unseal(rd.buf[rd.w:]); rd.n > 0 || err != nil {
			return err
		}
		if err = rd.receive(s.below()); rd.n == 0 {
			return err
		}
		s.received(rd.n)
		rd.n = 0
	}
}

func (rd *reader) ensureBuffer() {
	if rd.buf == nil {
		rd.buf = readBuffers.Get().(*readBuffer)
	}
}

// releaseBuffer gives back what is empty, for an idle connection to hold no
// large buffer.
func (rd *reader) releaseBuffer() {
	if rd.outOwner != nil && len(rd.out) == 0 {
		if cap(rd.out) >= replyBytes { // else it was given away
			*rd.outOwner = rd.out
			replyBuffers.Put(rd.outOwner)
		}
		rd.out, rd.outOwner = nil, nil
	}
	if rd.buf != nil {
		readBuffers.Put(rd.buf)
		rd.buf, rd.r, rd.w = nil, 0, 0
	}
}

// verdict is why process stopped.
type verdict int

const (
	needMore verdict = iota // the rest of a frame, or another
	userCode                // the next frame needs a handler, and the role is borrowed
	roleGone                // the role is somebody else's
	readOver                // the connection has ended
)

// run is the reader's goroutine, which holds the role in state roleReading.
func (rd *reader) run() {
	c := rd.c
	for {
		rd.settle()
		switch v := rd.process(false); v {
		case roleGone, readOver:
			return
		}
		rd.settle()
		if c.life.theyAreDone { // nothing follows, and the farewell does the rest
			rd.releaseBuffer()
			close(c.eof)
			return
		}
		if rd.letGo() {
			return
		}
		if err := rd.fill(); err != nil && err != errPoked {
			rd.releaseBuffer()
			c.readFailed(err)
			return
		}
		if rd.found {
			rd.found = false
			if !rd.waited {
				rd.stay = stayBatches
			}
		}
	}
}

// process takes in the whole frames in the buffer.
func (rd *reader) process(borrowed bool) verdict {
	c := rd.c
	rd.served, rd.delivered, rd.streamed = false, false, false
	rd.requests, rd.clock = 0, 0
	for rd.w-rd.r >= frameHeaderLen {
		ended := c.ended.Load() && !c.life.theyAreDone // this side has closed: what still comes is discarded
		b := rd.buf[rd.r:rd.w]
		// The header is read and passed field by field: a copy of the struct
		// would wait for the stores of its parts.
		h := &rd.head
		h.Length, h.Type, h.Flags = binary.LittleEndian.Uint32(b), FrameType(b[4]), FrameFlags(b[5])
		h.Code, h.ID = binary.LittleEndian.Uint16(b[6:]), binary.LittleEndian.Uint32(b[8:])
		err := h.check()
		if err == nil && c.life.theyAreDone {
			err = fmt.Errorf("plugwire: %v after GOAWAY done", h.Type)
		}
		if err == nil && uint64(h.Length) > uint64(c.cfg.Limits.MaxFrame) {
			err = fmt.Errorf("plugwire: %v of %d bytes, MaxFrame is %d", h.Type, h.Length, c.cfg.Limits.MaxFrame)
		}
		if err == nil {
			end := frameHeaderLen + int(h.Length)
			if len(b) < end {
				return needMore
			}
			needsUser := h.Type == FrameCall || h.Type == FrameNotify
			if needsUser && borrowed && !ended {
				return userCode
			}
			rd.r += end
			if ended && (h.Type != FrameGoAway || h.Code != goAwayDone && h.Code != goAwayFailed) {
				continue
			}
			payload := b[frameHeaderLen:end:end]
			mine := true
			switch h.Type {
			case FrameCall:
				mine, err = rd.call(h, payload)
			case FrameNotify:
				if m := rd.plainNote(h); m != nil {
					rd.r -= end
					var ran bool
					if ran, mine = rd.noteRun(m); ran {
						break
					}
					rd.r += end
				}
				mine, err = rd.notify(h, payload)
			case FrameReply, FrameError:
				err = rd.ending(h, payload)
			case FrameData:
				err = rd.streamFrame(h, payload)
			default:
				err = rd.controlFrame(h, payload)
			}
			if !mine {
				return roleGone
			}
		}
		if err != nil && ended {
			rd.r = rd.w
			return needMore
		}
		if err != nil {
			rd.settle()
			rd.releaseBuffer()
			if c.life.theirReason != nil { // it has closed: nothing is answered
				c.readFailed(err)
			} else {
				c.violated(err)
			}
			return readOver
		}
	}
	return needMore
}

// controlFrame takes in the frames that are no messages.
func (rd *reader) controlFrame(h *FrameHeader, b []byte) error {
	c := rd.c
	if err := rd.countControl(h); err != nil {
		return err
	}
	switch h.Type {
	case FrameMethods:
		return c.readMethods(h, b)
	case FrameCancel:
		if in := c.serving.at(h.ID); in != nil && in.state.Load() == inStream {
			return fmt.Errorf("plugwire: CANCEL of slot %d, which is a stream", h.ID)
		} else if in != nil {
			in.cancel()
		} else if h.ID == 0 || h.ID > c.serving.limit {
			return fmt.Errorf("plugwire: CANCEL of slot %d, MaxCalls is %d", h.ID, c.serving.limit)
		}
		return nil
	case FrameCredit:
		switch {
		case h.ID != 0:
			return rd.streamFrame(h, b)
		case h.Flags&FlagBack != 0:
			return errors.New("plugwire: CREDIT with BACK for slot 0")
		}
		if len(b) == 0 {
			rd.settleNotes()
			c.creditAsked()
			return nil
		}
		return c.credited(b)
	case FrameAbort:
		return rd.aborted(h)
	case FramePing, FramePong:
		if len(b) != 8 {
			return fmt.Errorf("plugwire: %v of %d bytes", h.Type, len(b))
		}
		if h.Type == FramePong {
			c.ponged(binary.LittleEndian.Uint64(b))
			return nil
		}
		c.out.Lock()
		c.pong = true
		copy(c.pingData[:], b)
		c.out.Signal()
		c.out.Unlock()
		return nil
	case FrameGoAway:
		rd.putReplies() // before this side can think that it is done
		return c.goAway(h, b)
	case FrameHello, FrameProof:
		return fmt.Errorf("plugwire: %v after the handshake", h.Type)
	case FrameOpen, FrameClose, FrameReset:
		return rd.streamFrame(h, b)
	case FrameSwitch:
		return fmt.Errorf("plugwire: %v, a feature that was not agreed on", h.Type)
	}
	return nil // of a type that may be skipped
}

// What makes a flood of frames that are no messages: maxFast times in a row so
// many that each controlRun of them took no longer than controlTime. No use of
// this package comes near it.
const (
	controlRun  = 1024
	controlTime = 5 * time.Millisecond
	maxFast     = 32
)

// countControl looks at the clock once in controlRun frames.
func (rd *reader) countControl(h *FrameHeader) error {
	if rd.control++; rd.control < controlRun {
		return nil
	}
	now := time.Now()
	if now.Sub(rd.controlAt) > controlTime {
		rd.fast = 0
	} else if rd.fast++; rd.fast >= maxFast {
		return fmt.Errorf("plugwire: a flood of frames that carry no message, the last of them %v", h.Type)
	}
	rd.control, rd.controlAt = 0, now
	return nil
}

// message notes that a frame carried one.
func (rd *reader) message() { rd.control, rd.fast = 0, 0 }

// ending takes in a REPLY or ERROR.
func (rd *reader) ending(h *FrameHeader, b []byte) error {
	c := rd.c
	rd.message()
	e := c.calls.at(h.ID)
	if e == nil || e.state.Load() == callIdle {
		if c.ended.Load() {
			return nil // this side has just closed
		}
		return fmt.Errorf("plugwire: %v in slot %d, where nothing was asked", h.Type, h.ID)
	}
	if e.state.Load() >= callStream {
		return fmt.Errorf("plugwire: %v in slot %d, which is a stream", h.Type, h.ID)
	}
	if h.Flags&FlagBack == 0 {
		return fmt.Errorf("plugwire: %v without BACK", h.Type)
	}
	if h.Flags&FlagMeta != 0 && !c.metadata {
		return errNoMetadata
	}
	var failed *Error
	more, single := false, true
	if h.Type == FrameError {
		if e.part.total > 0 {
			return fmt.Errorf("plugwire: ERROR in slot %d inside a REPLY that was not aborted", h.ID)
		}
		var err error
		if h.Flags&FlagMeta != 0 {
			f := fieldReader{b: b}
			if e.meta, err = f.metaField(); err != nil {
				return err
			}
			b = f.b
		}
		text, detail, err := parseErrorPayload(b)
		if err != nil {
			return err
		}
		failed = &Error{Code: statusOf(h.Code), Op: "call", Message: string(text), Detail: append([]byte(nil), detail...), notRun: h.Flags&FlagNotRun != 0}
	} else if h.Flags&(FlagBegin|FlagMore|FlagMeta) != 0 || e.part.total > 0 || len(b) > c.cfg.Limits.MaxMessage {
		var err error
		if b, more, single, err = rd.replyPart(e, h, b); err != nil || more {
			return err
		}
	}
	if !e.claim() {
		rd.dropEnding(h.ID, e)
		return nil
	}
	switch {
	case failed != nil:
	case single:
		e.call.Reply = append(e.call.Reply, b...)
	default: // the caller puts it together
		e.call.parts, e.part = e.part, assembly{}
	}
	if e.meta != nil {
		e.call.ReplyMetadata, e.meta = e.meta, nil
	}
	rd.endings++
	rd.freed = append(rd.freed, h.ID)
	if c.shard != nil {
		e.code, e.time = OK, rd.endedAt()-e.time
		if failed != nil {
			e.code = failed.Code
		}
	}
	if failed != nil {
		failed.Addr = e.call.Method
		e.finish(failed)
	} else {
		e.finish(nil)
	}
	return nil
}

// dropEnding takes in the ending of a call whose caller has gone.
func (rd *reader) dropEnding(id uint32, e *outCall) {
	e.part.drop()
	e.meta = nil
	if !e.state.CompareAndSwap(callAbandoned, callIdle) {
		return // the connection has been closed, which ended it
	}
	rd.endings++
	c := rd.c
	c.out.Lock()
	e.cancel = false
	c.callsEnded++
	c.freeSlot(id, e)
	c.out.Unlock()
}

// statusOf reads a status that goes with a failure: OK would make it a success.
func statusOf(code uint16) Code {
	if code == uint16(OK) {
		return Unknown
	}
	return Code(code)
}

// replyPart takes in a REPLY that is a part of one, or has prefix fields. Of one
// that nobody waits for only the sum is kept.
func (rd *reader) replyPart(e *outCall, h *FrameHeader, b []byte) (rest []byte, more, single bool, err error) {
	a := &e.part
	if a.total > 0 {
		if h.Flags&(FlagBegin|FlagMeta) != 0 {
			return nil, false, false, errBeginTwice
		}
		whole, err := a.check(h, b)
		if err == nil {
			rd.addReply(e, b)
		}
		return nil, !whole, false, err
	}
	if h.Flags&(FlagBegin|FlagMore) == FlagMore {
		return nil, false, false, errNoBegin
	}
	pre, b, err := parsePrefix(h, b, rd.c.cfg.Limits.MaxMessage)
	if err != nil {
		return nil, false, false, err
	}
	e.meta = pre.meta
	if pre.total == 0 {
		return b, false, true, nil
	}
	*a = assembly{total: pre.total}
	rd.addReply(e, b)
	return nil, true, false, nil
}

func (rd *reader) addReply(e *outCall, b []byte) {
	if e.state.Load() == callAbandoned && !e.part.unwanted {
		e.part.discard()
	}
	e.part.put(rd, b)
}

var (
	errNoBegin    = errors.New("plugwire: a fragment of a message that was not begun")
	errBeginTwice = errors.New("plugwire: BEGIN inside a message")
	errEmptyPart  = errors.New("plugwire: an empty fragment continues a message")
)

// settle does what was put off while frames were taken in: credit is due,
// replies leave.
func (rd *reader) settle() {
	c := rd.c
	if rd.endings > 0 {
		crowd := c.expecting.Add(-rd.endings) > 0 || rd.endings > 1
		if c.crowd.Load() != crowd {
			c.crowd.Store(crowd)
		}
		rd.endings = 0
		rd.settleFreed()
		rd.delivered = true
	}
	rd.settleNotes()
	rd.putReplies()
	if rd.unsettled {
		rd.unsettled = false
		c.unsettled.Store(false)
	}
	if rd.made > 0 {
		rd.made = 0
		c.out.Flush()
	} else {
		c.out.FlushControl()
	}
}

// settleFreed frees the slots of the calls that have ended.
func (rd *reader) settleFreed() {
	if len(rd.freed) == 0 {
		return
	}
	c := rd.c
	c.out.Lock()
	c.callsEnded += uint64(len(rd.freed))
	if c.shard != nil {
		c.shard.mu.Lock()
	}
	for _, id := range rd.freed {
		e := c.calls.at(id)
		if e.record != nil {
			e.record.add(e.code, e.time, 1)
			e.record = nil
		}
		if e.whole {
			c.freeSlot(id, e)
		} else {
			e.ended = true
		}
	}
	if c.shard != nil {
		c.shard.mu.Unlock()
	}
	c.out.Unlock()
	rd.freed = rd.freed[:0]
}

func (rd *reader) settleNotes() {
	if rd.noteMsgs > 0 {
		rd.c.noteHandled(rd.noteBytes, rd.noteMsgs)
		rd.noteBytes, rd.noteMsgs = 0, 0
	}
}
