package protobuf

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/plugwire/plugwire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// namePart is a message with required fields.
type namePart = descriptorpb.UninterpretedOption_NamePart

var (
	fields   = plugwire.NewMethod[structpb.Struct, structpb.ListValue]("fields", Codec)
	echo     = plugwire.NewMethod[wrapperspb.BytesValue, wrapperspb.BytesValue]("echo", Codec)
	text     = plugwire.NewMethod[wrapperspb.StringValue, wrapperspb.StringValue]("text", Codec)
	nothing  = plugwire.NewMethod[emptypb.Empty, emptypb.Empty]("nothing", Codec)
	required = plugwire.NewMethod[namePart, namePart]("required", Codec)
	none     = plugwire.NewMethod[emptypb.Empty, emptypb.Empty]("none", Codec)
)

func testMux() *plugwire.Mux {
	mux := plugwire.NewMux()
	fields.Handle(mux, func(_ context.Context, s *structpb.Struct) (*structpb.ListValue, error) {
		out := &structpb.ListValue{}
		for i := range len(s.Fields) {
			v, ok := s.Fields[fmt.Sprint(i)]
			if !ok {
				return nil, &plugwire.Error{Code: plugwire.NotFound, Message: fmt.Sprintf("no field %d", i)}
			}
			out.Values = append(out.Values, v) // part of the request, which is the handler's
		}
		return out, nil
	})
	echo.Handle(mux, func(_ context.Context, b *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error) { return b, nil })
	text.Handle(mux, func(_ context.Context, s *wrapperspb.StringValue) (*wrapperspb.StringValue, error) {
		return wrapperspb.String(s.Value + "\xff"), nil // no UTF-8
	})
	nothing.Handle(mux, func(_ context.Context, e *emptypb.Empty) (*emptypb.Empty, error) { return e, nil })
	required.Handle(mux, func(_ context.Context, p *namePart) (*namePart, error) { return p, nil })
	none.Handle(mux, func(context.Context, *emptypb.Empty) (*emptypb.Empty, error) { return nil, nil })
	return mux
}

// dial returns a connection to a server of testMux.
func dial(t testing.TB) *plugwire.Conn {
	t.Helper()
	server := &plugwire.Server{Mux: testMux()}
	l, err := server.Listen("tcp:")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		if err := <-ended; !errors.Is(err, plugwire.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	conn, err := plugwire.Dial(context.Background(), "tcp://"+l.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestMessagesRoundTrip(t *testing.T) {
	ctx, conn := context.Background(), dial(t)

	request, err := structpb.NewStruct(map[string]any{"0": "zero", "1": 1.5, "2": []any{true, nil}, "3": map[string]any{"ü": "<>"}})
	if err != nil {
		t.Fatal(err)
	}
	want, err := structpb.NewList([]any{"zero", 1.5, []any{true, nil}, map[string]any{"ü": "<>"}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := fields.Call(ctx, conn, request); err != nil || !proto.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	for _, n := range []int{0, 1, 300, 3 << 20} {
		want := wrapperspb.Bytes([]byte(strings.Repeat("x", n)))
		if got, err := echo.Call(ctx, conn, want); err != nil || !proto.Equal(got, want) {
			t.Errorf("%d bytes: %d came back, %v", n, len(got.GetValue()), err)
		}
	}
	if got, err := nothing.Call(ctx, conn, &emptypb.Empty{}); err != nil || got == nil {
		t.Errorf("an empty message: %v, %v", got, err)
	}
	part := &namePart{NamePart: proto.String("a"), IsExtension: proto.Bool(true)}
	if got, err := required.Call(ctx, conn, part); err != nil || !proto.Equal(got, part) {
		t.Errorf("required fields: %v, %v", got, err)
	}
}

func TestFieldsUnknownToTheReceiverAreKept(t *testing.T) {
	ctx, conn := context.Background(), dial(t)
	wide := plugwire.NewMethod[namePart, namePart]("nothing", Codec)
	part := &namePart{NamePart: proto.String("a"), IsExtension: proto.Bool(false)}
	if got, err := wide.Call(ctx, conn, part); err != nil || !proto.Equal(got, part) {
		t.Errorf("through an empty message: %v, %v", got, err)
	}
}

func TestFailuresHaveTheirCodes(t *testing.T) {
	ctx, conn := context.Background(), dial(t)
	call := func(name string, payload string) error {
		_, err := conn.Call(ctx, name, []byte(payload))
		return err
	}
	first := func(_ any, err error) error { return err }
	for _, test := range []struct {
		what   string
		err    error
		code   plugwire.Code
		notRun bool
	}{
		{"truncated request", call("echo", "\x0a\x05abc"), plugwire.InvalidArgument, false},
		{"request that is no UTF-8", first(text.Call(ctx, conn, wrapperspb.String("\xff"))), plugwire.InvalidArgument, true},
		{"reply that is no UTF-8", first(text.Call(ctx, conn, wrapperspb.String(""))), plugwire.Internal, false},
		{"unset required field", first(required.Call(ctx, conn, &namePart{})), plugwire.InvalidArgument, true},
		{"unset required field, sent all the same", call("required", ""), plugwire.InvalidArgument, false},
		{"nil request", first(echo.Call(ctx, conn, nil)), plugwire.InvalidArgument, true},
		{"nil reply", first(none.Call(ctx, conn, &emptypb.Empty{})), plugwire.Internal, false},
		{"reply of another type", first(plugwire.NewMethod[wrapperspb.BytesValue, namePart]("echo", Codec).
			Call(ctx, conn, wrapperspb.Bytes([]byte("x")))), plugwire.Internal, false},
		{"the handler's error", first(fields.Call(ctx, conn, &structpb.Struct{
			Fields: map[string]*structpb.Value{"x": structpb.NewNullValue()}})), plugwire.NotFound, false},
		{"a type that is no message", first(plugwire.NewMethod[string, emptypb.Empty]("nothing", Codec).
			Call(ctx, conn, new(string))), plugwire.Internal, true},
		{"a pointer to a message", first(plugwire.NewMethod[*emptypb.Empty, emptypb.Empty]("nothing", Codec).
			Call(ctx, conn, new(*emptypb.Empty))), plugwire.Internal, true},
		{"a reply type that is no message", first(plugwire.NewMethod[emptypb.Empty, string]("nothing", Codec).
			Call(ctx, conn, &emptypb.Empty{})), plugwire.Internal, false},
	} {
		var e *plugwire.Error
		if !errors.As(test.err, &e) || e.Code != test.code || plugwire.NotRun(test.err) != test.notRun {
			t.Errorf("%s: %v (code %v, NotRun %v), want code %v, NotRun %v", test.what, test.err,
				plugwire.CodeOf(test.err), plugwire.NotRun(test.err), test.code, test.notRun)
		}
	}
	if _, err := echo.Call(ctx, conn, &wrapperspb.BytesValue{}); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

func TestConcurrentCallsAreKeptApart(t *testing.T) {
	ctx, conn := context.Background(), dial(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			var replies []*wrapperspb.BytesValue
			message := func(round int) *wrapperspb.BytesValue {
				return wrapperspb.Bytes([]byte(strings.Repeat(fmt.Sprint(i, " ", round, " "), round)))
			}
			for round := range 100 {
				got, err := echo.Call(ctx, conn, message(round))
				if err != nil {
					t.Error(err)
					return
				}
				replies = append(replies, got)
			}
			for round, got := range replies { // later calls have not changed them
				if !proto.Equal(got, message(round)) {
					t.Errorf("caller %d, call %d: got %v", i, round, got)
				}
			}
		})
	}
	wg.Wait()
}

func TestAppendKeepsWhatIsThere(t *testing.T) {
	dst := append(make([]byte, 0, 100), "before"...)
	got, err := Codec.Append(dst, wrapperspb.String("x"))
	if err != nil || string(got) != "before\x0a\x01x" || &got[0] != &dst[0] {
		t.Errorf("%q, %v", got, err)
	}
	for _, v := range []any{nil, 1, wrapperspb.String("\xff")} {
		if got, err := Codec.Append(dst, v); err == nil || string(got) != "before" {
			t.Errorf("%v: %q, %v", v, got, err)
		}
	}
}
