package resolver

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/plugwire/plugwire"
)

// DNS has the addresses (A and AAAA) of hostport's host, each with hostport's port:
// "app.example.com:7000". The Pool dials them as "tcp://IP:port".
func DNS(hostport string, o *Options) plugwire.Resolver {
	return &polled{o.withDefaults(defaultRefresh), func(ctx context.Context, o *Options) ([]string, error) {
		host, service, err := net.SplitHostPort(hostport)
		if err != nil {
			return nil, fmt.Errorf("resolver: %q: %w", hostport, err)
		}
		port, err := strconv.ParseUint(service, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("resolver: %q: the port is not a number from 0 to 65535", hostport)
		}
		ctx, cancel := context.WithTimeout(ctx, o.Timeout)
		defer cancel()
		return o.addresses(ctx, host, uint16(port))
	}}
}

// SRV has the addresses and ports of a name's SRV records, such as
// "_plugwire._tcp.app.example.com". Of records with different priorities only those
// with the lowest number count; weights do not, for a Pool gives a call to whoever
// has the fewest.
func SRV(name string, o *Options) plugwire.Resolver {
	return &polled{o.withDefaults(defaultRefresh), func(ctx context.Context, o *Options) ([]string, error) {
		ctx, cancel := context.WithTimeout(ctx, o.Timeout)
		defer cancel()
		_, records, err := o.Resolver.LookupSRV(ctx, "", "", name)
		if err != nil {
			return nil, fmt.Errorf("resolver: %w", err)
		}
		if len(records) == 0 {
			return nil, nil
		}
		first := slices.MinFunc(records, func(a, b *net.SRV) int { return cmp.Compare(a.Priority, b.Priority) }).Priority
		var addrs []string
		for _, r := range records {
			if r.Priority != first || r.Target == "." { // which says that there is no such service
				continue
			}
			of, lookErr := o.addresses(ctx, r.Target, r.Port)
			if lookErr != nil {
				err = lookErr // the others may be there
			}
			addrs = append(addrs, of...)
		}
		if len(addrs) > 0 {
			err = nil
		}
		return addrs, err
	}}
}

// addresses looks up a host.
func (o *Options) addresses(ctx context.Context, host string, port uint16) ([]string, error) {
	ips, err := o.Resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	addrs := make([]string, len(ips))
	for i, ip := range ips {
		addrs[i] = "tcp://" + netip.AddrPortFrom(ip.Unmap(), port).String()
	}
	return addrs, nil
}
