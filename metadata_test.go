package plugwire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"testing"
)

// metaMux answers "swap" with what it was given: values become keys.
func metaMux() *Mux {
	m := NewMux()
	m.Handle("swap", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		md := make(Metadata)
		for k, v := range r.Metadata() {
			md[v] = k
		}
		r.SetReplyMetadata(md)
		if len(r.Payload()) > 0 && r.Payload()[0] == '!' {
			return reply, &Error{Code: NotFound, Message: "no"}
		}
		return append(reply, r.Payload()...), nil
	}))
	m.HandleFunc("context", func(ctx context.Context, req []byte) ([]byte, error) {
		info, _ := InfoFromContext(ctx)
		info.SetReplyMetadata(info.Metadata)
		return req, nil
	})
	m.Handle("raw", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		r.SetReplyMetadata(Metadata{"Bad Key": ""})
		return reply, nil
	}))
	return m
}

func TestMetadataTravels(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		x, _ := pair(t, transport, nil, serves(metaMux()))
		for _, size := range []int{0, 10, 100 << 10} { // the last in several frames, both ways
			for _, fails := range []string{"", "!"} {
				req := append([]byte(fails), fill(size, 4)...)
				call := &Call{Method: "swap", Request: req, Metadata: Metadata{"a": "b", "empty": "e", "trace-id": strings.Repeat("x", 200)}}
				for range 2 {
					call.Reply = call.Reply[:0]
					err := x.Do(background, call)
					if fails == "" && err != nil || fails != "" && CodeOf(err) != NotFound {
						t.Fatal(err)
					}
					want := Metadata{"b": "a", "e": "empty", strings.Repeat("x", 200): "trace-id"}
					if !maps.Equal(call.ReplyMetadata, want) {
						t.Errorf("%d bytes %q: got %v", size, fails, call.ReplyMetadata)
					}
					if fails == "" && !bytes.Equal(call.Reply, req) {
						t.Errorf("%d bytes: the reply of %d beside metadata is not what was sent", size, len(call.Reply))
					}
				}
				call.Metadata = nil
				if err := x.Do(background, call); CodeOf(err) != CodeOf(map[string]error{"": nil, "!": &Error{Code: NotFound}}[fails]) || call.ReplyMetadata != nil {
					t.Errorf("%v, %v", err, call.ReplyMetadata)
				}
			}
		}
		call := &Call{Method: "context", Metadata: Metadata{"k": "v"}}
		if err := x.Do(background, call); err != nil || call.ReplyMetadata["k"] != "v" {
			t.Errorf("%v, %v", call.ReplyMetadata, err)
		}
		if _, err := x.Call(background, "raw", nil); CodeOf(err) != Internal || !strings.Contains(err.Error(), "Bad Key") {
			t.Errorf("a key that cannot be sent: %v", err)
		}
	})
}

func TestMetadataThatCannotBeSent(t *testing.T) {
	x, _ := pair(t, "unix", nil, serves(metaMux()))
	for name, md := range map[string]Metadata{
		"empty key":  {"": "v"},
		"upper case": {"Key": "v"},
		"space":      {"a b": "v"},
		"not ASCII":  {"\u00e9": "v"},
		"long key":   {strings.Repeat("k", 256): "v"},
		"too much":   {"k": strings.Repeat("v", maxMetadata-3)},
		"many":       many(maxMetadata),
	} {
		err := x.Do(background, &Call{Method: "swap", Metadata: md})
		if name == "too much" {
			md["k"] = md["k"][1:] // fits
			if err := x.Do(background, &Call{Method: "context", Metadata: md}); err != nil {
				t.Errorf("the most that fits: %v", err)
			}
		}
		var e *Error
		if !errors.As(err, &e) || e.Code != InvalidArgument || !NotRun(err) || e.Op != "call" || e.Addr != "swap" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := x.DoAll(background, []*Call{{Method: "swap"}, {Method: "swap", Metadata: Metadata{"": ""}}}); CodeOf(err) != InvalidArgument {
		t.Errorf("DoAll: %v", err)
	}
	accounts(t, x)
}

func many(n int) Metadata {
	md := make(Metadata)
	for i := range n / 8 {
		md[fmt.Sprintf("%05d", i)] = "1"
	}
	return md
}

// Metadata counts against the request budget, so that it cannot be used to hold memory.
func TestMetadataCounts(t *testing.T) {
	hello := adversaryHello()
	hello.offered = []string{featureMetadata}
	eachWay(t, func(t *testing.T, w way) {
		a := meet(t, w, nil, hello)
		meta := Metadata{"k": strings.Repeat("v", 3500)}
		n, _ := meta.size()
		field := meta.append(nil, n)
		for id := range uint32(4) { // the budget is 16384
			a.send(frame(FrameCall, FlagMeta, mSlow, id+1, field))
		}
		a.send(frame(FrameCall, FlagMeta, mSlow, 5, field))
		a.closed("MaxRequestBytes")
	})
}

func TestMetadataOnTheWire(t *testing.T) {
	for name, field := range map[string][]byte{
		"cut short":          []byte{9, 0, 1, 'k'},
		"pair cut short":     []byte{4, 0, 1, 'k', 9, 0},
		"empty key":          []byte{3, 0, 0, 0, 0},
		"no length":          []byte{1},
		"a key and no value": []byte{2, 0, 1, 'k'},
	} {
		f := fieldReader{b: field}
		if _, err := f.metaField(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	f := fieldReader{b: []byte{10, 0, 1, 'k', 1, 0, 'a', 1, 'k', 1, 0, 'b', 'r'}}
	if md, err := f.metaField(); err != nil || !maps.Equal(md, Metadata{"k": "b"}) || string(f.b) != "r" {
		t.Errorf("%v, %v, rest %q", md, err, f.b)
	}
}

// A reply in append form lies where its metadata must go, and the metadata can
// be what makes it too long for a frame.
func TestReplyMetadataLeavesTheReplyAlone(t *testing.T) {
	md := Metadata{"key": strings.Repeat("v", 1000)}
	m := NewMux()
	m.Handle("bytes", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		n, err := strconv.Atoi(string(r.Payload()))
		r.SetReplyMetadata(md)
		for i := range n {
			reply = append(reply, byte(i))
		}
		return reply, err
	}))
	m.Handle("error", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		r.SetReplyMetadata(md)
		n, _ := strconv.Atoi(string(r.Payload()))
		return reply, &Error{Code: NotFound, Message: "the text", Detail: make([]byte, n)}
	}))
	m.Handle("metadata", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		r.SetReplyMetadata(Metadata{"key": strings.Repeat("v", 6<<10)})
		return reply, nil
	}))
	for _, frame := range []int{4 << 10, 64 << 10} {
		x, _ := pair(t, "unix", &Config{Limits: Limits{MaxFrame: frame}}, serves(m))
		for _, n := range []int{0, 1, 2, 10, 1000, 3000, frame - 1006, frame - 1005, frame - 1, frame, frame + 1, 200 << 10} {
			for range 3 {
				call := &Call{Method: "bytes", Request: strconv.AppendInt(nil, int64(n), 10)}
				if err := x.Do(background, call); err != nil {
					t.Fatalf("%d bytes in frames of %d: %v", n, frame, err)
				}
				if !maps.Equal(call.ReplyMetadata, md) || len(call.Reply) != n {
					t.Errorf("%d bytes in frames of %d: got %d bytes and metadata %.20v", n, frame, len(call.Reply), call.ReplyMetadata)
				}
				for i, b := range call.Reply {
					if b != byte(i) {
						t.Fatalf("%d bytes in frames of %d: byte %d is %d", n, frame, i, b)
					}
				}
			}
			call := &Call{Method: "error", Request: strconv.AppendInt(nil, int64(n), 10)}
			err := x.Do(background, call)
			var e *Error
			if !errors.As(err, &e) || e.Code != NotFound || !strings.HasPrefix(e.Message, "the text") || !maps.Equal(call.ReplyMetadata, md) {
				t.Errorf("%d bytes of detail in frames of %d: %v", n, frame, err)
			}
		}
		_, err := x.Call(background, "metadata", nil)
		if want := map[bool]Code{true: Internal}[frame < 6<<10]; CodeOf(err) != want {
			t.Errorf("metadata of 6 KiB in frames of %d: %v, want code %v", frame, err, want)
		}
	}
}
