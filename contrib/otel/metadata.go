package otel

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/plugwire/plugwire"
)

// Inject returns md with what the propagator writes of the span and baggage in ctx.
// md itself is not changed; when there is nothing to write, or not the room for it in
// plugwire's metadata, it is what Inject returns. Callers of a Caller need it only
// for a stream's SetHeader, which replaces what OpenStream has set:
//
//	s.SetHeader(otel.Inject(s.Context(), plugwire.Metadata{"user": "gopher"}))
//
// It takes the options of the Caller; WithPropagator is the one that matters.
func Inject(ctx context.Context, md plugwire.Metadata, opts ...Option) plugwire.Metadata {
	out, _ := configOf(opts).inject(ctx, md)
	return out
}

// inject is Inject that reports whether it returns something else than md.
func (c *config) inject(ctx context.Context, md plugwire.Metadata) (plugwire.Metadata, bool) {
	w := make(carrier, 3)
	c.propagator.Inject(ctx, w)
	if len(w) == 0 {
		return md, false
	}
	if len(md) > 0 {
		merged := make(carrier, len(md)+len(w))
		maps.Copy(merged, md)
		maps.Copy(merged, w)
		w = merged
	}
	if w.size() > maxMetadata {
		return md, false
	}
	return plugwire.Metadata(w), true
}

// maxMetadata is what plugwire.Metadata documents as the most for one message.
const maxMetadata = 16 << 10

// carrier is metadata as propagators see it. Their keys may be written with capitals,
// as in HTTP; plugwire's may not.
type carrier plugwire.Metadata

// Get implements propagation.TextMapCarrier.
func (c carrier) Get(key string) string { return c[strings.ToLower(key)] }

// Set implements propagation.TextMapCarrier.
func (c carrier) Set(key, value string) { c[strings.ToLower(key)] = value }

// Keys implements propagation.TextMapCarrier.
func (c carrier) Keys() []string { return slices.Collect(maps.Keys(c)) }

// size returns how much of maxMetadata the pairs take.
func (c carrier) size() (n int) {
	for k, v := range c {
		n += 3 + len(k) + len(v)
	}
	return n
}
