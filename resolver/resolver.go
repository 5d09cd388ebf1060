// Package resolver tells a plugwire.Pool where its servers are. Use DNS for the
// addresses of a host name, which is what a headless Service of Kubernetes has,
// SRV for names that have ports too, as Consul and Nomad publish them, and File for
// a list in a file that something else writes:
//
//	cfg.Pool.Resolver = resolver.DNS("app.prod.svc.cluster.local:7000", nil)
//	pool := plugwire.NewPool(cfg)
//
// What cannot be looked up or read leaves the Pool with the addresses that it has:
// a name server that is away ends no connection. The Pool logs the failure and
// tries again.
//
// DNS and SRV give addresses by IP, and what a name server says is not proven. With
// Config.TLS the servers' certificates are therefore to be checked by
// TLSConfig.Names or TrustDomain, which do not depend on the address.
package resolver

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"github.com/plugwire/plugwire"
)

// Options are settings of a resolver; nil means the zero one.
type Options struct {
	Refresh  time.Duration // how long until it is looked again, give or take a tenth; default 10 s, of File 1 s
	Timeout  time.Duration // how long a lookup may take; default 5 s
	Resolver *net.Resolver // of names; default net.DefaultResolver
}

func (o *Options) withDefaults(refresh time.Duration) Options {
	var d Options
	if o != nil {
		d = *o
	}
	if d.Refresh <= 0 {
		d.Refresh = refresh
	}
	if d.Timeout <= 0 {
		d.Timeout = 5 * time.Second
	}
	if d.Resolver == nil {
		d.Resolver = net.DefaultResolver
	}
	return d
}

// polled is a resolver that looks again and again.
type polled struct {
	Options
	look func(ctx context.Context, o *Options) ([]string, error)
}

var _ plugwire.Resolver = (*polled)(nil)

// Watch looks until ctx ends or a look fails.
func (p *polled) Watch(ctx context.Context, update func(addrs []string)) error {
	var last []string
	for first := true; ; first = false {
		addrs, err := p.look(ctx, &p.Options)
		if err != nil {
			return err
		}
		slices.Sort(addrs) // name servers take turns with who comes first
		addrs = slices.Compact(addrs)
		if first || !slices.Equal(addrs, last) {
			last = addrs
			update(slices.Clone(addrs))
		}
		// Not all processes that began together shall ask together.
		timer := time.NewTimer(time.Duration(float64(p.Refresh) * (0.9 + 0.2*rand.Float64())))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}
