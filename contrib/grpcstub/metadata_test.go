package grpcstub

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/plugwire/plugwire"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// someMetadata has what is hard to carry in single values.
func someMetadata(prefix string) metadata.MD {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	return metadata.MD{
		prefix + "one":      {"value"},
		prefix + "two":      {"first", "second"},
		prefix + "empty":    {""},
		prefix + "empties":  {"", "", ""},
		prefix + "same":     {"x", "x"},
		prefix + "bin":      {"not binary"},
		prefix + "x-bin":    {string(every)},
		prefix + "many-bin": {"\x00", string(every), "", strings.Repeat("\xff", 200)},
		prefix + "a.b_c-d":  {"spaces inside , and commas"},
	}
}

// clean drops the keys that gRPC's transport adds of its own.
func clean(md metadata.MD) metadata.MD {
	md = md.Copy()
	for _, key := range []string{":authority", "content-type", "user-agent", "grpc-accept-encoding"} {
		delete(md, key)
	}
	return md
}

func sameMetadata(t *testing.T, what string, got, want metadata.MD) {
	t.Helper()
	if got = clean(got); !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestMetadataTravels(t *testing.T) {
	bothWays(t, func(t *testing.T, b backend) {
		fails := status.Error(codes.NotFound, "no")
		s := &service{
			unary: func(ctx context.Context, in *request) (*response, error) {
				md, _ := metadata.FromIncomingContext(ctx)
				sameMetadata(t, "request", md, someMetadata("q-"))
				grpc.SetHeader(ctx, metadata.Pairs("h-set", "1"))
				grpc.SetHeader(ctx, metadata.Pairs("h-set", "2"))
				if err := grpc.SendHeader(ctx, someMetadata("h-")); err != nil {
					t.Errorf("SendHeader: %v", err)
				}
				if grpc.SetHeader(ctx, metadata.Pairs("a", "b")) == nil || grpc.SendHeader(ctx, nil) == nil {
					t.Error("SetHeader or SendHeader after SendHeader: no error")
				}
				grpc.SetTrailer(ctx, metadata.Pairs("t-set", "1"))
				grpc.SetTrailer(ctx, someMetadata("t-"))
				if in.ResponseSize < 0 {
					return nil, fails
				}
				return &response{Username: "me"}, nil
			},
			duplex: func(ss duplexServer) error {
				md, _ := metadata.FromIncomingContext(ss.Context())
				sameMetadata(t, "stream", md, someMetadata("q-"))
				if err := ss.SetHeader(metadata.Pairs("h-set", "1")); err != nil {
					t.Errorf("SetHeader: %v", err)
				}
				if err := grpc.SetHeader(ss.Context(), metadata.Pairs("h-set", "2")); err != nil {
					t.Errorf("SetHeader: %v", err)
				}
				ss.SetHeader(someMetadata("h-"))
				ss.SetTrailer(metadata.Pairs("t-set", "1"))
				ss.SetTrailer(someMetadata("t-"))
				in, err := ss.Recv()
				if err != nil {
					return err
				}
				if err := ss.Send(&reply{}); err != nil {
					return err
				}
				if ss.SetHeader(metadata.Pairs("a", "b")) == nil || ss.SendHeader(nil) == nil {
					t.Error("SetHeader or SendHeader after a message: no error")
				}
				if in.ResponseType != 0 {
					return fails
				}
				return nil
			},
		}
		wantHeader, wantTrailer := someMetadata("h-"), someMetadata("t-")
		wantHeader["h-set"], wantTrailer["t-set"] = []string{"1", "2"}, []string{"1"}
		client := s.client(t, b)
		ctx := metadata.NewOutgoingContext(within(t), someMetadata("q-"))
		for _, size := range []int32{0, -1} {
			var header, trailer metadata.MD
			if _, err := client.UnaryCall(ctx, &request{ResponseSize: size}, grpc.Header(&header), grpc.Trailer(&trailer)); (err != nil) != (size < 0) {
				t.Fatal(err)
			}
			sameMetadata(t, "header", header, wantHeader)
			sameMetadata(t, "trailer", trailer, wantTrailer)
		}
		for _, kind := range []int32{0, 1} {
			var header, trailer metadata.MD
			stream, err := client.FullDuplexCall(ctx, grpc.Header(&header), grpc.Trailer(&trailer))
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Send(&item{ResponseType: testgrpc.PayloadType(kind)}); err != nil {
				t.Fatal(err)
			}
			h, err := stream.Header()
			if err != nil {
				t.Fatal(err)
			}
			sameMetadata(t, "Header", h, wantHeader)
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); (status.Code(err) == codes.NotFound) != (kind == 1) {
				t.Error(err)
			}
			sameMetadata(t, "Trailer", stream.Trailer(), wantTrailer)
			sameMetadata(t, "header option", header, wantHeader)
			sameMetadata(t, "trailer option", trailer, wantTrailer)
		}
	})
}

func TestHeaderOfAStream(t *testing.T) {
	bothWays(t, func(t *testing.T, b backend) {
		proceed := make(chan struct{})
		var act func(ss duplexServer) error
		client := (&service{duplex: func(ss duplexServer) error {
			<-proceed
			return act(ss)
		}}).client(t, b)
		for name, test := range map[string]struct {
			act  func(ss duplexServer) error
			want metadata.MD // nil: no header
		}{
			"sent before any message": {func(ss duplexServer) error {
				if err := ss.SendHeader(metadata.Pairs("a", "b")); err != nil {
					return err
				}
				<-ss.Context().Done()
				return nil
			}, metadata.Pairs("a", "b")},
			"sent empty": {func(ss duplexServer) error {
				if err := ss.SendHeader(nil); err != nil {
					return err
				}
				<-ss.Context().Done()
				return nil
			}, metadata.MD{}},
			"set, and ended":      {func(ss duplexServer) error { ss.SetHeader(metadata.Pairs("a", "b")); return nil }, metadata.Pairs("a", "b")},
			"set, and failed":     {func(ss duplexServer) error { ss.SetHeader(metadata.Pairs("a", "b")); return errPlain }, metadata.Pairs("a", "b")},
			"none, and failed":    {func(ss duplexServer) error { return errPlain }, nil},
			"none, but a message": {func(ss duplexServer) error { ss.Send(&reply{}); <-ss.Context().Done(); return nil }, metadata.MD{}},
		} {
			act = test.act
			ctx, cancel := context.WithCancel(within(t))
			stream, err := client.FullDuplexCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			got := make(chan metadata.MD)
			go func() {
				md, err := stream.Header()
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				got <- md
			}()
			proceed <- struct{}{}
			md := <-got
			if len(clean(md)) != len(test.want) || len(test.want) > 0 && !reflect.DeepEqual(clean(md), test.want) {
				t.Errorf("%s: got %v, want %v", name, md, test.want)
			}
			cancel()
			for err = nil; err == nil; _, err = stream.Recv() {
			}
		}
	})
}

func TestMetadataThatGRPCRefuses(t *testing.T) {
	bothWays(t, func(t *testing.T, b backend) {
		refused := []metadata.MD{{"with space": {"x"}}, {"text": {"\n"}}, {"text": {"ok", "☺"}}, {"star*": {"x"}}, {"slash/": {"x"}}}
		client := (&service{
			unary: func(ctx context.Context, in *request) (*response, error) { return &response{}, nil },
			duplex: func(ss duplexServer) error {
				for _, md := range refused {
					if err := ss.SetHeader(md); status.Code(err) != codes.Internal {
						t.Errorf("SetHeader(%q): %v", md, err)
					}
				}
				return nil
			},
		}).client(t, b)
		for _, md := range refused {
			ctx := metadata.NewOutgoingContext(within(t), md)
			if _, err := client.UnaryCall(ctx, &request{}); status.Code(err) != codes.Internal {
				t.Errorf("%q: %v, want code %v", md, err, codes.Internal)
			}
			if _, err := client.FullDuplexCall(ctx); status.Code(err) != codes.Internal {
				t.Errorf("%q: %v, want code %v", md, err, codes.Internal)
			}
		}
		stream, err := client.FullDuplexCall(within(t))
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		wantEOF(t, err)
	})
}

// Keys of gRPC's own are not the user's, and too much is refused, not cut.
func TestReservedAndTooMuchMetadata(t *testing.T) {
	var got metadata.MD
	client := (&service{unary: func(ctx context.Context, in *request) (*response, error) {
		got, _ = metadata.FromIncomingContext(ctx)
		if in.ResponseSize > 0 {
			grpc.SetTrailer(ctx, metadata.Pairs("large", strings.Repeat("x", int(in.ResponseSize))))
		}
		return &response{}, nil
	}}).client(t, backends[0])
	ctx := metadata.NewOutgoingContext(within(t), metadata.MD{":authority": {"me"}, "content-type": {"x"}, "grpc-timeout": {"1S"}, "te": {"x"}, "kept": {"x"}})
	if _, err := client.UnaryCall(ctx, &request{}); err != nil || !reflect.DeepEqual(got, metadata.Pairs("kept", "x")) {
		t.Errorf("got %v, %v", got, err)
	}
	ctx = metadata.NewOutgoingContext(within(t), metadata.Pairs("large", strings.Repeat("x", 20<<10)))
	if _, err := client.UnaryCall(ctx, &request{}); err == nil {
		t.Error("20 KiB of metadata were sent")
	}
	if _, err := client.FullDuplexCall(ctx); err == nil {
		t.Error("20 KiB of metadata were sent with a stream")
	}
	if _, err := client.UnaryCall(within(t), &request{ResponseSize: 20 << 10}); status.Code(err) != codes.Internal {
		t.Errorf("20 KiB of trailer: %v", err)
	}
}

// What is not gRPC's metadata is taken as it is.
func TestForeignMetadata(t *testing.T) {
	var many string
	for _, v := range encodeMetadata(nil, "", metadata.Pairs("k", "a", "k", "b")) {
		many = v
	}
	md := plugwire.Metadata{"plain": "x", "star*": "not of that form", "star2*": "", "one*": "\x01a", "k": "first", "k*": many, "trailer/t": "y", "te": "z", ":path": "z"}
	header, trailer := decodeMetadata(md)
	if v := header["k"]; len(v) != 3 || !slices.Contains(v, "first") {
		t.Errorf("k: %q", v)
	}
	delete(header, "k")
	want := metadata.MD{"plain": {"x"}, "star*": {"not of that form"}, "star2*": {""}, "one*": {"\x01a"}}
	if !reflect.DeepEqual(header, want) || !reflect.DeepEqual(trailer, metadata.MD{"t": {"y"}}) {
		t.Errorf("got %q and %q", header, trailer)
	}
}

func FuzzMetadata(f *testing.F) {
	f.Add("key", "a", "b", true)
	f.Add("key-bin", "", "\x00\xff", false)
	f.Fuzz(func(t *testing.T, key, a, b string, two bool) {
		decodeMetadata(plugwire.Metadata{key: a, key + manySuffix: b}) // whatever it is
		key += "-bin"
		md := metadata.MD{key: {a}}
		if two {
			md[key] = append(md[key], b)
		}
		if checkMetadata(md) != nil || reserved(key) {
			return
		}
		wire := encodeMetadata(encodeMetadata(nil, "", md), trailerPrefix, md)
		header, trailer := decodeMetadata(wire)
		if !reflect.DeepEqual(header, md) || !reflect.DeepEqual(trailer, md) {
			t.Errorf("%q came back as %q and %q", md, header, trailer)
		}
	})
}
