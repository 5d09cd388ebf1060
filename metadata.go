package plugwire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Metadata accompanies a call, its reply, or a stream: small texts by key, for
// what is not part of the message (trace ids, credentials, hints). Keys are
// lower-case ASCII without spaces, 1 to 255 bytes; values are any bytes. All of
// one message's keys and values, and 3 bytes for each pair, fit 16 KiB. Unused
// metadata costs nothing on the wire.
type Metadata map[string]string

// maxMetadata bounds the metadata of one message, in bytes on the wire.
const maxMetadata = 16 << 10

// featureMetadata is the feature that both sides need for it.
const featureMetadata = "metadata"

// size returns the bytes that md takes on the wire, or why it cannot be sent.
// No pairs take none.
func (md Metadata) size() (int, error) {
	n := 0
	for k, v := range md {
		if len(k) == 0 || len(k) > 255 {
			return 0, fmt.Errorf("metadata key of %d bytes, must be 1 to 255", len(k))
		}
		for i := range len(k) {
			if c := k[i]; c <= ' ' || c > '~' || 'A' <= c && c <= 'Z' {
				return 0, fmt.Errorf("metadata key %q: must be lower-case ASCII", k)
			}
		}
		n += 3 + len(k) + len(v)
		if n > maxMetadata {
			return 0, fmt.Errorf("metadata of more than %d bytes", maxMetadata)
		}
	}
	return n, nil
}

// append appends the META field: u16 length, then (u8 key length, key, u16 value
// length, value)*. size is what size returned.
func (md Metadata) append(dst []byte, size int) []byte {
	dst = binary.LittleEndian.AppendUint16(dst, uint16(size))
	for k, v := range md {
		dst = append(append(dst, byte(len(k))), k...)
		dst = append(binary.LittleEndian.AppendUint16(dst, uint16(len(v))), v...)
	}
	return dst
}

// metaField reads a META field.
func (f *fieldReader) metaField() (Metadata, error) {
	m := fieldReader{b: f.take(f.u16())}
	switch {
	case f.bad:
		return nil, errTruncated
	case len(m.b) > maxMetadata:
		return nil, fmt.Errorf("plugwire: metadata of %d bytes, the limit is %d", len(m.b), maxMetadata)
	}
	var md Metadata
	for len(m.b) > 0 {
		key := m.take(m.u8())
		value := m.take(m.u16())
		if m.bad || len(key) == 0 {
			return nil, errBadMetadata
		}
		if md == nil {
			md = make(Metadata)
		}
		md[string(key)] = string(value)
	}
	return md, nil
}

var (
	errBadMetadata = errors.New("plugwire: metadata that does not parse")
	errNoMetadata  = errors.New("plugwire: metadata, a feature that was not agreed on")
)

// metaError is the *Error for metadata that cannot be sent.
func metaError(op, method string, err error) *Error {
	return &Error{Code: InvalidArgument, Op: op, Addr: method, Message: err.Error(), notRun: true}
}
