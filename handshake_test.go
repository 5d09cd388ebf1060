package plugwire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func randomHello(r *rand.Rand) *hello {
	upTo := func(least, most int) int { return least + int(r.Uint64N(uint64(most-least)+1)) }
	h := &hello{version: upTo(1, math.MaxUint16), identity: strings.Repeat("i", upTo(0, 40))}
	h.limits = limits{upTo(minFrame, maxWireLen), upTo(minFrame, maxWireLen), upTo(0, maxWireLen), upTo(minWindow, maxWireLen), 0, upTo(0, maxWireLen)}
	h.limits.requestBytes = upTo(h.limits.message, maxWireLen)
	for range upTo(0, 3) {
		h.offered = append(h.offered, strings.Repeat("f", upTo(1, 255)))
		h.required = append(h.required, strings.Repeat("r", upTo(1, 255)))
	}
	for range upTo(0, 5) {
		h.apps = append(h.apps, r.Uint32())
	}
	for i := range h.nonce {
		h.nonce[i] = byte(r.Uint32())
	}
	return h
}

func TestHelloRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		h := randomHello(r)
		got, err := parseHello(appendHello(nil, h))
		if err != nil || !reflect.DeepEqual(got, h) {
			t.Fatalf("%+v\nbecame %+v, %v", h, got, err)
		}
	}
}

func TestGoldenHellosParse(t *testing.T) {
	entries, _ := readGolden(t)
	want := map[string]limits{
		"hello-small":    {minFrame, minFrame, 0, minWindow, minFrame, 0},
		"hello-listener": {maxFrame, defaultMaxMessage, defaultMaxCalls, defaultOneWayWindow, defaultRequestBytes, 0},
	}
	seen := 0
	for _, e := range entries {
		if e.header.Type != FrameHello {
			continue
		}
		seen++
		h, err := parseHello(e.payload())
		if err != nil {
			t.Errorf("%s: %v", e.name, err)
			continue
		}
		if l, ok := want[e.name]; ok && (h.limits != l || h.version != 1) {
			t.Errorf("%s: %+v", e.name, h)
		}
		if again, err := parseHello(appendHello(nil, h)); err != nil || !reflect.DeepEqual(again, h) {
			t.Errorf("%s: %+v became %+v, %v", e.name, h, again, err)
		}
	}
	if seen < 3 {
		t.Errorf("only %d golden HELLOs", seen)
	}
}

func TestDefaultHelloIsTheDocumented(t *testing.T) {
	cfg := (*Config)(nil).withDefaults()
	if l := cfg.hello().limits; l.calls != 0 {
		t.Errorf("without a Mux: %+v", l)
	}
	cfg.Mux = NewMux()
	h := cfg.hello()
	if want := (limits{maxFrame, defaultMaxMessage, defaultMaxCalls, defaultOneWayWindow, defaultRequestBytes, defaultStreamWindow}); h.limits != want {
		t.Errorf("%+v, want %+v", h.limits, want)
	}
	if again := cfg.hello(); again.nonce == h.nonce {
		t.Error("the same nonce twice")
	}
}

func TestHelloCutAtEveryOffset(t *testing.T) {
	payload := appendHello(nil, randomHello(rand.New(rand.NewPCG(3, 4))))
	for cut := range payload {
		if h, err := parseHello(payload[:cut]); err == nil {
			// Between two tags, with nothing mandatory missing.
			if !bytes.HasPrefix(payload, appendHello(nil, h)) {
				t.Errorf("cut at %d: %+v", cut, h)
			}
			if h.version == 0 || h.limits.frame == 0 || h.nonce == ([nonceLen]byte{}) {
				t.Errorf("cut at %d: %+v", cut, h)
			}
		}
	}
}

func tagged(tag uint16, value ...any) []byte {
	var v []byte
	for _, part := range value {
		switch p := part.(type) {
		case string:
			v = append(v, p...)
		default:
			v, _ = binary.Append(v, binary.LittleEndian, p)
		}
	}
	b := binary.LittleEndian.AppendUint16(nil, tag)
	return append(binary.LittleEndian.AppendUint16(b, uint16(len(v))), v...)
}

// helloTags are the tags of a good HELLO; a test changes one.
func helloTags() map[string][]byte {
	return map[string][]byte{
		"version": tagged(1, uint16(1)),
		"limits":  limitsTag(4096, 4096, 0, 4096, 4096, 0),
		"nonce":   tagged(6, strings.Repeat("n", 32)),
	}
}

func limitsTag(n ...uint32) []byte { return tagged(4, n) }

func TestHelloTags(t *testing.T) {
	const big = 1 << 31
	for _, row := range []struct {
		name string
		tag  string // that is replaced, or "" to add one
		with []byte
		want string // of the error, or "" when it is good
	}{
		{"as it is", "", nil, ""},
		{"version missing", "version", nil, "without tag 1"},
		{"limits missing", "limits", nil, "without tag 4"},
		{"nonce missing", "nonce", nil, "without tag 6"},
		{"version twice", "", tagged(1, uint16(1)), "tag 1 twice"},
		{"limits twice", "", limitsTag(4096, 4096, 0, 4096, 4096, 0), "tag 4 twice"},
		{"nonce twice", "", tagged(6, strings.Repeat("n", 32)), "tag 6 twice"},
		{"identity twice", "", cat(tagged(5, "a"), tagged(5, "b")), "tag 5 twice"},
		{"app versions twice", "", cat(tagged(7, uint32(1)), tagged(7, uint32(2))), "tag 7 twice"},
		{"unknown tag", "", tagged(99, "anything"), ""},
		{"unknown tag, empty", "", tagged(65535), ""},
		{"tag 0", "", tagged(0, "x"), ""},
		{"unknown tag twice", "", cat(tagged(99, "a"), tagged(99, "b")), "tag 99 twice"},
		{"features repeated", "", cat(tagged(2, "a"), tagged(2, "a"), tagged(3, "b"), tagged(3, "c")), ""},
		{"feature without a name", "", tagged(2), "tag 2 has a wrong length"},
		{"feature of 255 bytes", "", tagged(2, strings.Repeat("f", 255)), ""},
		{"feature of 256 bytes", "", tagged(2, strings.Repeat("f", 256)), "tag 2 has a wrong length"},
		{"requirement without a name", "", tagged(3), "tag 3 has a wrong length"},
		{"requirement of 256 bytes", "", tagged(3, strings.Repeat("f", 256)), "tag 3 has a wrong length"},
		{"version of 1 byte", "version", tagged(1, uint8(1)), "tag 1 has a wrong length"},
		{"version of 3 bytes", "version", tagged(1, uint16(1), uint8(0)), "tag 1 has a wrong length"},
		{"version 0", "version", tagged(1, uint16(0)), "version 0"},
		{"version 65535", "version", tagged(1, uint16(65535)), ""},
		{"nonce of 31 bytes", "nonce", tagged(6, strings.Repeat("n", 31)), "tag 6 has a wrong length"},
		{"nonce of 33 bytes", "nonce", tagged(6, strings.Repeat("n", 33)), "tag 6 has a wrong length"},
		{"limits of 20 bytes", "limits", limitsTag(4096, 4096, 0, 4096, 4096), "tag 4 has a wrong length"},
		{"limits of 28 bytes", "limits", limitsTag(4096, 4096, 0, 4096, 4096, 0, 0), "tag 4 has a wrong length"},
		{"limits of 0 bytes", "limits", tagged(4), "tag 4 has a wrong length"},
		{"app versions of 5 bytes", "", tagged(7, uint32(1), uint8(0)), "tag 7 has a wrong length"},
		{"app versions of 0 bytes", "", tagged(7), ""},
		{"identity empty", "", tagged(5), ""},
		{"frame below its floor", "limits", limitsTag(4095, 4096, 0, 4096, 4096, 0), "out of bounds"},
		{"message below its floor", "limits", limitsTag(4096, 4095, 0, 4096, 4096, 0), "out of bounds"},
		{"window below its floor", "limits", limitsTag(4096, 4096, 0, 4095, 4096, 0), "out of bounds"},
		{"request bytes below a message", "limits", limitsTag(4096, 8192, 0, 4096, 8191, 0), "out of bounds"},
		{"frame 2^31", "limits", limitsTag(big, 4096, 0, 4096, 4096, 0), "limit of 2147483648"},
		{"message 2^31", "limits", limitsTag(4096, big, 0, 4096, math.MaxUint32, 0), "limit of 2147483648"},
		{"slots 2^31", "limits", limitsTag(4096, 4096, big, 4096, 4096, 0), "limit of 2147483648"},
		{"window 2^31", "limits", limitsTag(4096, 4096, 0, big, 4096, 0), "limit of 2147483648"},
		{"request bytes 2^32-1", "limits", limitsTag(4096, 4096, 0, 4096, math.MaxUint32, 0), "limit of 4294967295"},
		{"all 2^31-1", "limits", limitsTag(big-1, big-1, big-1, big-1, big-1, big-1), ""},
		{"stream window is not judged", "limits", limitsTag(4096, 4096, 0, 4096, 4096, math.MaxUint32), ""},
		{"a tag alone", "", []byte{1}, "shorter"},
		{"half a length", "", []byte{99, 0, 5}, "shorter"},
		{"a value cut short", "", []byte{99, 0, 5, 0, 'a'}, "shorter"},
	} {
		tags := helloTags()
		if row.tag == "" {
			tags["z"] = row.with
		} else {
			tags[row.tag] = row.with
		}
		for _, order := range [][]string{{"version", "limits", "nonce", "z"}, {"nonce", "version", "limits", "z"}} {
			var b []byte
			for _, name := range order {
				b = append(b, tags[name]...)
			}
			h, err := parseHello(b)
			if row.want == "" && (err != nil || h == nil) || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("%s: %+v, %v, want %q", row.name, h, err, row.want)
			}
		}
	}
}

func TestNegotiation(t *testing.T) {
	v := func(n ...uint32) []uint32 { return n }
	for i, row := range []struct {
		dialler, listener []uint32
		want              int
		bad               bool
	}{
		{nil, nil, 0, false},
		{v(1), nil, 0, false},
		{nil, v(1), 0, false},
		{v(1), v(1), 1, false},
		{v(1, 3, 2), v(2, 3, 4), 3, false},
		{v(1), v(2), 0, true},
		{v(1), v(1<<31 | 1), 0, true},
		{v(0), v(0), 0, false},
	} {
		got, err := negotiate(&hello{apps: row.dialler}, &hello{apps: row.listener})
		if got != row.want || (err != nil) != row.bad {
			t.Errorf("%d: %d, %v", i, got, err)
		}
		for _, list := range [][]uint32{row.dialler, row.listener} {
			if err != nil && !strings.Contains(err.Error(), fmt.Sprint(list)) {
				t.Errorf("%d: %v does not name %v", i, err, list)
			}
		}
	}
	for _, row := range []struct {
		offered, required []string
		lacking           string
	}{
		{nil, nil, ""},
		{[]string{"a"}, nil, ""},
		{nil, []string{"a"}, "a"},
		{[]string{"b"}, []string{"b", "c"}, "c"},
	} {
		has := &hello{offered: []string{"b", "z"}}
		if got := lacking(has, &hello{offered: row.offered, required: row.required}); got != row.lacking {
			t.Errorf("%v: lacks %q", row.required, got)
		}
		if got := lacking(&hello{required: row.required}, &hello{required: row.required}); got != "" {
			t.Errorf("what both require: lacks %q", got)
		}
	}
}

func TestGuesses(t *testing.T) {
	for saw, want := range map[string]string{
		"GET / HTTP/1.1\r\n":                       "HTTP (",
		"POST /x HTTP/1.1\r\n":                     "HTTP (",
		"HTTP/1.1 400 Bad Request\r\n":             "HTTP (",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":         "HTTP/2, perhaps gRPC",
		"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00": "HTTP/2, perhaps gRPC",
		"\x16\x03\x01\x02\x00\x01":                 "TLS",
		"\x15\x03\x03\x00\x02\x02\x28":             "TLS",
		"SSH-2.0-OpenSSH_9.6\r\n":                  "SSH",
		"\xd7PW\x02":                               "another major version",
		"\x00\x01\x02\x03":                         "unknown protocol",
		"hello":                                    "unknown protocol",
	} {
		err := guessProtocol([]byte(saw))
		if text := err.Error(); !strings.Contains(text, want) || !strings.Contains(text, "does not speak plugwire") ||
			slices.ContainsFunc([]byte(text), func(c byte) bool { return c < ' ' || c > '~' }) {
			t.Errorf("%q: %q, want %q", saw, text, want)
		}
	}
}
