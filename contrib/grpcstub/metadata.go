package grpcstub

import (
	"context"
	"encoding/binary"
	"strings"

	"github.com/plugwire/plugwire"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	manySuffix    = "*"        // of a key with several values
	trailerPrefix = "trailer/" // of the trailer's keys in a reply
)

// reserved reports whether a key is gRPC's own, which its transport does not
// take from the user either.
func reserved(key string) bool {
	switch key {
	case "", "content-type", "user-agent", "te", "grpc-message-type", "grpc-encoding", "grpc-message", "grpc-status", "grpc-timeout":
		return true
	}
	return key[0] == ':'
}

// checkMetadata refuses what gRPC refuses: keys with characters other than its
// own, and values that are not printable ASCII under keys without "-bin".
func checkMetadata(md metadata.MD) error {
	for key, values := range md {
		if key == "" {
			return status.Error(codes.Internal, "grpcstub: metadata with an empty key")
		}
		if key[0] == ':' {
			continue
		}
		for i := range len(key) {
			if c := key[i]; !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '.' || c == '-' || c == '_') {
				return status.Errorf(codes.Internal, "grpcstub: metadata key %q: must be of a-z, 0-9, '-', '_' and '.'", key)
			}
		}
		if strings.HasSuffix(key, "-bin") {
			continue
		}
		for _, v := range values {
			for i := range len(v) {
				if v[i] < ' ' || v[i] > '~' {
					return status.Errorf(codes.Internal, "grpcstub: metadata %q: a value that is not printable ASCII needs a key that ends in -bin", key)
				}
			}
		}
	}
	return nil
}

// encodeMetadata adds md to dst, which may be nil, with a prefix for each key.
func encodeMetadata(dst plugwire.Metadata, prefix string, md metadata.MD) plugwire.Metadata {
	for key, values := range md {
		if len(values) == 0 || reserved(key) {
			continue
		}
		if dst == nil {
			dst = make(plugwire.Metadata, len(md))
		}
		if len(values) == 1 {
			dst[prefix+key] = values[0]
			continue
		}
		var b []byte
		for _, v := range values {
			b = append(binary.AppendUvarint(b, uint64(len(v))), v...)
		}
		dst[prefix+key+manySuffix] = string(b)
	}
	return dst
}

// decodeMetadata splits what encodeMetadata has made by the trailer's prefix. It
// takes anybody's metadata: what is not in the form for several values is one.
func decodeMetadata(md plugwire.Metadata) (header, trailer metadata.MD) {
	header, trailer = metadata.MD{}, metadata.MD{}
	for key, value := range md {
		to := header
		if k, ok := strings.CutPrefix(key, trailerPrefix); ok {
			key, to = k, trailer
		}
		values := []string(nil)
		if k, ok := strings.CutSuffix(key, manySuffix); ok {
			if values = splitValues(value); values != nil {
				key = k
			}
		}
		if values == nil {
			values = []string{value}
		}
		if !reserved(key) {
			to[key] = append(to[key], values...)
		}
	}
	return header, trailer
}

// headerOf decodes metadata that has no trailer in it.
func headerOf(md plugwire.Metadata) metadata.MD {
	header, _ := decodeMetadata(md)
	return header
}

// splitValues parses two or more values with their lengths, or returns nil.
func splitValues(s string) []string {
	var values []string
	for len(s) > 0 {
		n, used := binary.Uvarint([]byte(s[:min(len(s), binary.MaxVarintLen64)]))
		if used <= 0 || n > uint64(len(s)-used) {
			return nil
		}
		values = append(values, s[used:used+int(n)])
		s = s[used+int(n):]
	}
	if len(values) < 2 {
		return nil
	}
	return values
}

// outgoing returns the metadata that a client's context holds.
func outgoing(ctx context.Context) (plugwire.Metadata, error) {
	md, ok := metadata.FromOutgoingContext(ctx)
	if !ok || len(md) == 0 {
		return nil, nil
	}
	if err := checkMetadata(md); err != nil {
		return nil, err
	}
	return encodeMetadata(nil, "", md), nil
}
