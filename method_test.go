package plugwire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

type sumRequest struct {
	Name   string
	Values []float64
}

type sumReply struct {
	Name string
	Sum  float64
}

var sumMethod = NewMethod[sumRequest, sumReply]("sum", JSON)

// sum is its handler. A sum that is infinite does not encode.
func sum(_ context.Context, r *sumRequest) (*sumReply, error) {
	reply := &sumReply{Name: r.Name}
	for _, v := range r.Values {
		reply.Sum += v
	}
	return reply, nil
}

func TestMethodRoundTripsWithEachCodec(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		mux := NewMux()
		sumMethod.Handle(mux, sum)
		at := NewMethod[time.Time, url.URL]("at", Binary) // the one appends, the other only marshals
		at.Handle(mux, func(_ context.Context, when *time.Time) (*url.URL, error) {
			return &url.URL{Scheme: "at", Host: when.Format("2006-01-02"), Path: "/"}, nil
		})
		reverse := NewMethod[[]byte, []byte]("reverse", Raw)
		reverse.Handle(mux, func(_ context.Context, b *[]byte) (*[]byte, error) {
			out := make([]byte, len(*b))
			for i, c := range *b {
				out[len(out)-1-i] = c
			}
			return &out, nil
		})
		upper := NewMethod[string, string]("upper", Raw)
		upper.Handle(mux, func(_ context.Context, s *string) (*string, error) {
			out := strings.ToUpper(*s)
			return &out, nil
		})
		x, y := pair(t, transport, nil, serves(mux))

		for _, n := range []int{0, 1, 100, 100_000} { // the last takes several frames each way
			values := make([]float64, n)
			for i := range values {
				values[i] = float64(i)
			}
			name := strings.Repeat("<ü>", n)
			want := sumReply{name, float64(n) * float64(n-1) / 2}
			if got, err := sumMethod.Call(background, x, &sumRequest{name, values}); err != nil || *got != want {
				t.Errorf("JSON, %d values: %.100v, %v", n, got, err)
			}
			b := fill(n, 1)
			if got, err := reverse.Call(background, x, &b); err != nil || len(*got) != n || n > 0 && ((*got)[0] != b[n-1] || (*got)[n-1] != b[0]) {
				t.Errorf("Raw, %d bytes: %.100v, %v", n, got, err)
			}
			s := strings.Repeat("a", n)
			if got, err := upper.Call(background, x, &s); err != nil || *got != strings.Repeat("A", n) {
				t.Errorf("Raw, string of %d bytes: %v", n, err)
			}
		}
		when := time.Date(2001, 2, 3, 4, 5, 6, 7, time.UTC)
		if got, err := at.Call(background, x, &when); err != nil || got.String() != "at://2001-02-03/" {
			t.Errorf("Binary: %v, %v", got, err)
		}
		accounts(t, x, y)
	})
}

// wantText fails the test unless err's text contains want, and the package's
// prefix just once.
func wantText(t testing.TB, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) || strings.Count(err.Error(), "plugwire:") != 1 {
		t.Errorf("error %v, want %q in it, and the prefix once", err, want)
	}
}

func TestMethodRequestThatDoesNotDecodeDoesNotReachTheHandler(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		mux := NewMux()
		ran := 0
		sumMethod.Handle(mux, func(context.Context, *sumRequest) (*sumReply, error) { ran++; return &sumReply{}, nil })
		NewMethod[sumRequest, sumReply]("binary sum", Binary).Handle(mux, func(context.Context, *sumRequest) (*sumReply, error) {
			ran++
			return &sumReply{}, nil
		})
		picky := codecFuncs{unmarshal: func(b []byte, v any) error {
			return fmt.Errorf("picky: %w", &Error{Code: OutOfRange, Message: "too long", notRun: true})
		}}
		NewMethod[string, string]("picky", picky).Handle(mux, func(context.Context, *string) (*string, error) { ran++; return new(string), nil })
		x, y := pair(t, transport, nil, serves(mux))

		// Decoding is code of the application that has seen the request.
		for _, test := range []struct {
			method, request, text string
			code                  Code
		}{
			{"sum", "", "sum: the request does not decode: unexpected end of JSON input", InvalidArgument},
			{"sum", `{"Name": 1}`, "sum: the request does not decode: json: cannot unmarshal", InvalidArgument},
			{"sum", `{} {}`, "after top-level value", InvalidArgument},
			{"binary sum", "x", "the Binary codec does not take a *plugwire.sumRequest", Internal},
			{"picky", "x", "too long", OutOfRange},
		} {
			_, err := x.Call(background, test.method, []byte(test.request))
			wantCode(t, err, test.code, false)
			if test.code != OutOfRange { // whose text is the codec's own
				wantText(t, err, test.text)
			}
		}
		if _, err := sumMethod.Call(background, x, &sumRequest{}); err != nil {
			t.Errorf("after requests that do not decode: %v", err)
		}
		accounts(t, x, y)
		if ran != 1 {
			t.Errorf("the handler ran %d times, want once", ran)
		}
	})
}

func TestMethodRequestThatDoesNotEncodeIsNotSent(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		mux := NewMux()
		ran := 0
		sumMethod.Handle(mux, func(context.Context, *sumRequest) (*sumReply, error) { ran++; return &sumReply{}, nil })
		x, y := pair(t, transport, nil, serves(mux))

		_, err := sumMethod.Call(background, x, nil)
		wantCode(t, err, InvalidArgument, true)
		wantText(t, err, "call sum: nil request")

		_, err = sumMethod.Call(background, x, &sumRequest{Values: []float64{math.NaN()}})
		wantCode(t, err, InvalidArgument, true)
		wantText(t, err, "call sum: the request does not encode: json: unsupported value: NaN")
		if cause := new(json.UnsupportedValueError); !errors.As(err, &cause) {
			t.Errorf("%v: its cause is not to be had", err)
		}

		_, err = NewMethod[sumRequest, sumReply]("sum", Binary).Call(background, x, &sumRequest{})
		wantCode(t, err, Internal, true)
		wantText(t, err, "the Binary codec does not take a *plugwire.sumRequest")
		_, err = NewMethod[sumRequest, sumReply]("sum", Raw).Call(background, x, &sumRequest{})
		wantCode(t, err, Internal, true)

		if _, err := sumMethod.Call(background, x, &sumRequest{}); err != nil {
			t.Errorf("after requests that do not encode: %v", err)
		}
		accounts(t, x, y)
		if ran != 1 {
			t.Errorf("the handler ran %d times, want once", ran)
		}
	})
}

func TestMethodReplyThatIsNoneIsInternal(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		mux := NewMux()
		sumMethod.Handle(mux, sum)
		mux.HandleFunc("garbage", func(context.Context, []byte) ([]byte, error) { return []byte("[1]"), nil })
		none := NewMethod[sumRequest, sumReply]("none", JSON)
		none.Handle(mux, func(context.Context, *sumRequest) (*sumReply, error) { return nil, nil })
		x, y := pair(t, transport, nil, serves(mux))

		_, err := NewMethod[sumRequest, sumReply]("garbage", JSON).Call(background, x, &sumRequest{})
		wantCode(t, err, Internal, false)
		wantText(t, err, "call garbage: the reply does not decode: json: ")
		if cause := new(json.UnmarshalTypeError); !errors.As(err, &cause) {
			t.Errorf("%v: its cause is not to be had", err)
		}
		_, err = NewMethod[string, sumReply]("garbage", Raw).Call(background, x, new(string))
		wantCode(t, err, Internal, false)

		_, err = sumMethod.Call(background, x, &sumRequest{Values: []float64{math.MaxFloat64, math.MaxFloat64}})
		wantCode(t, err, Internal, false)
		wantText(t, err, "call sum: the reply does not encode: json: unsupported value: +Inf")

		_, err = none.Call(background, x, &sumRequest{})
		wantCode(t, err, Internal, false)
		wantText(t, err, "call none: the handler returned neither a reply nor an error")
		accounts(t, x, y)
	})
}

func TestMethodErrorsAndContextsAreTheHandlers(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		mux := NewMux()
		started := make(chan struct{}, 1)
		fail := NewMethod[string, string]("fail", Raw)
		fail.Handle(mux, func(ctx context.Context, how *string) (*string, error) {
			switch reply := "dropped"; *how {
			case "typed":
				return &reply, fmt.Errorf("wrapped: %w", &Error{Code: 300, Message: "mine", Detail: []byte("detail")})
			case "plain":
				return nil, errors.New("plain")
			default:
				if info, ok := InfoFromContext(ctx); !ok || info.Method != "fail" {
					return nil, errors.New("the context is not the request's")
				}
				started <- struct{}{}
				<-ctx.Done()
				return nil, ctx.Err()
			}
		})
		x, y := pair(t, transport, nil, serves(mux))

		call := func(ctx context.Context, how string) error {
			got, err := fail.Call(ctx, x, &how)
			if got != nil {
				t.Errorf("%s: a reply with the error: %q", how, *got)
			}
			return err
		}
		var e *Error
		if err := call(background, "typed"); !errors.As(err, &e) || e.Code != 300 || string(e.Detail) != "detail" || !strings.Contains(e.Message, "mine") {
			t.Errorf("typed: %v", err)
		}
		err := call(background, "plain")
		wantCode(t, err, Unknown, false)
		wantText(t, err, "call fail: plain")

		ctx, cancel := context.WithCancel(background)
		ended := make(chan error, 1)
		go func() { ended <- call(ctx, "wait") }()
		receive(t, "the handler", started)
		cancel()
		if err := receive(t, "the end of a cancelled call", ended); !errors.Is(err, context.Canceled) || NotRun(err) {
			t.Errorf("cancelled: %v", err)
		}
		wantCode(t, call(ctx, "plain"), Canceled, true)
		accounts(t, x, y)
	})
}

// codecFuncs is a Codec of functions.
type codecFuncs struct {
	append    func(dst []byte, v any) ([]byte, error)
	unmarshal func(b []byte, v any) error
}

func (c codecFuncs) Append(dst []byte, v any) ([]byte, error) { return c.append(dst, v) }
func (c codecFuncs) Unmarshal(b []byte, v any) error          { return c.unmarshal(b, v) }

func TestMethodCodecThatPanicsEndsOneCall(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		bad := codecFuncs{
			append:    func([]byte, any) ([]byte, error) { panic("bad append") },
			unmarshal: func([]byte, any) error { panic("bad unmarshal") },
		}
		same := func(_ context.Context, s *string) (*string, error) { return s, nil }
		mux := NewMux()
		NewMethod[string, string]("append", codecFuncs{append: bad.append, unmarshal: Raw.Unmarshal}).Handle(mux, same)
		NewMethod[string, string]("unmarshal", bad).Handle(mux, same)
		NewMethod[string, string]("good", Raw).Handle(mux, same)
		x, y := pair(t, transport, nil, serves(mux))

		// On the serving side it is a handler's panic.
		word := "word"
		for _, name := range []string{"append", "unmarshal"} {
			_, err := NewMethod[string, string](name, Raw).Call(background, x, &word)
			wantCode(t, err, Internal, false)
		}
		// On the calling side it is the caller's.
		panics := func(name string, c Codec) (p any) {
			defer func() { p = recover() }()
			NewMethod[string, string](name, c).Call(background, x, &word)
			return nil
		}
		if p := panics("good", bad); p != "bad append" {
			t.Errorf("recovered %v", p)
		}
		if p := panics("good", codecFuncs{append: Raw.Append, unmarshal: bad.unmarshal}); p != "bad unmarshal" {
			t.Errorf("recovered %v", p)
		}
		if got, err := NewMethod[string, string]("good", Raw).Call(background, x, &word); err != nil || *got != word {
			t.Errorf("after panics: %v", err)
		}
		accounts(t, x, y)
	})
}

// TestMethodKeepsConcurrentCallsApart also keeps each request in the handler,
// where later ones, and the connection's buffers, must not change it.
func TestMethodKeepsConcurrentCallsApart(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		mux := NewMux()
		sumMethod.Handle(mux, sum)
		var mu sync.Mutex
		var kept [][]byte
		keep := NewMethod[[]byte, []byte]("keep", Raw)
		keep.Handle(mux, func(_ context.Context, b *[]byte) (*[]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			kept = append(kept, *b)
			return b, nil
		})
		x, y := pair(t, transport, nil, serves(mux))

		const callers = 8
		rounds := scaled(200)
		replies := make([][][]byte, callers)
		var wg sync.WaitGroup
		for i := range callers {
			wg.Go(func() {
				for round := range rounds {
					seed := uint64(i*rounds + round)
					want := sumReply{fmt.Sprint("caller ", i), float64(i) + float64(round)}
					got, err := sumMethod.Call(background, x, &sumRequest{want.Name, []float64{float64(i), float64(round)}})
					if err != nil || *got != want {
						t.Errorf("%v, %v, want %v", got, err, want)
						return
					}
					b := sealed(int(seed%700), seed)
					reply, err := keep.Call(background, x, &b)
					if err != nil {
						t.Error(err)
						return
					}
					clear(b) // it is the caller's again
					replies[i] = append(replies[i], *reply)
				}
			})
		}
		wg.Wait()
		seen := make(map[uint64]bool)
		for _, b := range kept {
			seed, err := unseal(b)
			if err != nil || seen[seed] {
				t.Errorf("a kept request: %v, seen before: %v", err, seen[seed])
			}
			seen[seed] = true
		}
		if len(kept) != callers*rounds {
			t.Errorf("%d requests, want %d", len(kept), callers*rounds)
		}
		for i := range replies {
			for round, b := range replies[i] {
				if seed, err := unseal(b); err != nil || seed != uint64(i*rounds+round) {
					t.Errorf("caller %d: a kept reply has seed %d, %v", i, seed, err)
				}
			}
		}
		accounts(t, x, y)
	})
}

func TestMethodNamesThatPanic(t *testing.T) {
	mux := NewMux()
	sumMethod.Handle(mux, sum)
	for what, f := range map[string]func(){
		"empty":       func() { NewMethod[string, string]("", Raw) },
		"too long":    func() { NewMethod[string, string](strings.Repeat("x", 256), Raw) },
		"nil codec":   func() { NewMethod[string, string]("x", nil) },
		"taken":       func() { sumMethod.Handle(mux, sum) },
		"nil handler": func() { NewMethod[string, string]("x", Raw).Handle(mux, nil) },
	} {
		func() {
			defer func() {
				if p := fmt.Sprint(recover()); !strings.HasPrefix(p, "plugwire: method") {
					t.Errorf("%s: recovered %v", what, p)
				}
			}()
			f()
		}()
	}
	NewMethod[string, string](strings.Repeat("x", 255), Raw).Handle(mux, func(_ context.Context, s *string) (*string, error) { return s, nil })
	if n := len(mux.Methods()); n != 2 {
		t.Errorf("%d methods are registered, want 2", n)
	}
}

func TestCodecAppendsAndAllocatesNothing(t *testing.T) {
	when := time.Date(2001, 2, 3, 4, 5, 6, 7, time.UTC)
	wantWhen, err := when.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	word := "w<ü>"
	bytesOf := []byte(word)
	for _, test := range []struct {
		name  string
		codec Codec
		v     any
		want  string
	}{
		{"JSON", JSON, &sumReply{word, 1.5}, `{"Name":"w<ü>","Sum":1.5}`},
		{"Binary", Binary, &when, string(wantWhen)},
		{"Raw *[]byte", Raw, &bytesOf, word},
		{"Raw []byte", Raw, bytesOf, word},
		{"Raw *string", Raw, &word, word},
		{"Raw string", Raw, word, word},
	} {
		t.Run(test.name, func(t *testing.T) {
			dst := append(make([]byte, 0, 200), "before"...)
			if got, err := test.codec.Append(dst, test.v); err != nil || string(got) != "before"+test.want || &got[0] != &dst[0] {
				t.Errorf("%q, %v", got, err)
			}
			if got, err := test.codec.Append(nil, test.v); err != nil || string(got) != test.want {
				t.Errorf("to nil: %q, %v", got, err)
			}
			if raceEnabled {
				return // under which pools forget
			}
			if n := testing.AllocsPerRun(100, func() { test.codec.Append(dst, test.v) }); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

func TestCodecThatFailsLeavesTheSlice(t *testing.T) {
	dst := append(make([]byte, 0, 200), "before"...)
	farAway := time.Date(2001, 1, 1, 0, 0, 0, 0, time.FixedZone("", 1<<24)) // an offset that has no encoding
	for what, f := range map[string]func() ([]byte, error){
		"JSON":        func() ([]byte, error) { return JSON.Append(dst, math.Inf(1)) },
		"Binary":      func() ([]byte, error) { return Binary.Append(dst, &farAway) },
		"Binary type": func() ([]byte, error) { return Binary.Append(dst, 1) },
		"Raw type":    func() ([]byte, error) { return Raw.Append(dst, 1) },
	} {
		if got, err := f(); err == nil || string(got) != "before" {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	for what, err := range map[string]error{
		"Binary type": Binary.Unmarshal(nil, new(int)),
		"Raw type":    Raw.Unmarshal(nil, []byte{}),
	} {
		wantCode(t, err, Internal, false)
		wantText(t, err, strings.TrimSuffix(what, " type"))
	}
	b := []byte("copied")
	var got []byte
	if err := Raw.Unmarshal(b, &got); err != nil || !bytes.Equal(got, b) || &got[0] == &b[0] {
		t.Errorf("%q, %v, or not a copy", got, err)
	}
}
