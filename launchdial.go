package plugwire

import (
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"slices"
	"strings"
)

// Where a plugin says that it can be reached: first the transport that it
// prefers, of those that its host allows, then the others in case that one cannot
// be dialled. Its other listeners close when its host has connected.

// lineAlt is a field of the launch line: a further address, scheme:address, in
// order of preference; repeatable.
const lineAlt = "alt"

// launchAddr is an address of a plugin.
type launchAddr struct{ network, address string }

// uri returns the address to dial.
func (a launchAddr) uri() string {
	if a.network == "unix" || a.network == "npipe" || a.network == "tcp" {
		return a.network + "://" + a.address
	}
	return a.network + ":" + a.address
}

// addAddr adds an address to the line.
func (l *launchLine) addAddr(a launchAddr) {
	if l.network == "" {
		l.network, l.address = a.network, a.address
		return
	}
	l.fields = append(l.fields, launchField{lineAlt, a.network + ":" + a.address})
}

// addrs returns the addresses of the line, best first.
func (l *launchLine) addrs() []launchAddr {
	addrs := []launchAddr{{l.network, l.address}}
	for _, f := range l.fields {
		if network, address, ok := strings.Cut(f.value, ":"); f.key == lineAlt && ok {
			addrs = append(addrs, launchAddr{network, address})
		}
	}
	return addrs
}

// mayDial reports whether the host may use the address: the launch line is what a
// program has printed.
func (o *launchOrder) mayDial(a launchAddr, line *launchLine) bool {
	return slices.Contains(o.transports, a.network) && (!o.autoTLS(a.network) || isPin(line.cert))
}

// isPin reports whether text can be what keyPin returns.
func isPin(text string) bool {
	pin, err := base64.StdEncoding.DecodeString(text)
	return err == nil && len(pin) == 32
}

// connect dials the addresses of the launch line until one answers. A handshake
// that fails is the end: somebody is there, and another way in would lead to
// nobody else. cfg is the caller's, without defaults.
func (p *instance) connect(ctx context.Context, cfg *Config, offer []Candidate, order *launchOrder, line *launchLine, auto TLSConfig) (phase string, err error) {
	failed := make(map[string]error)
	for _, a := range line.addrs() {
		if !order.mayDial(a, line) || failed[a.network] != nil {
			continue
		}
		dialled := p.dialConfig(cfg, order, a, line, auto)
		if p.conn, err = Dial(ctx, a.uri(), dialled); err == nil {
			p.selection = selectionOf(offer, line, failed, a.network, p.cfg, order)
			p.cfg.logStep("transport choice", nil, slog.String("table", p.selection.String()))
			if p.pair != nil && a.network != socketpairScheme {
				p.pair.Close()
			}
			return "", p.attach(a, dialled)
		}
		if e := (*Error)(nil); errors.As(err, &e) && e.Op == "handshake" {
			return phaseHello, err
		}
		if ctx.Err() != nil {
			return phaseConnect, err
		}
		failed[a.network] = err
	}
	s := selectionOf(offer, line, failed, "", p.cfg, order)
	p.cfg.logStep("transport choice", err, slog.String("table", s.String()))
	if len(failed) > 1 {
		err = &Error{Code: CodeOf(err), Message: "none of the plugin's addresses can be dialled: " + s.line()}
	}
	return phaseConnect, err
}

// dialConfig returns the Config with which an address of the plugin is dialled.
func (p *instance) dialConfig(cfg *Config, order *launchOrder, a launchAddr, line *launchLine, auto TLSConfig) *Config {
	var d Config
	if cfg != nil {
		d = *cfg
	}
	if d.KeepAlive == 0 {
		d.KeepAlive = defaultKeepAlive
	}
	if line.field(lineSecret) != noLineSecret {
		d.secret = order.secret
	}
	if order.autoTLS(a.network) {
		d.TLS = auto
		d.TLS.pin = line.cert
	}
	switch {
	case order.overStdio():
		d.Custom = inheritedOnly(stdioScheme, p.proc.wire)
	case p.pair != nil && a.network == socketpairScheme:
		d.Custom = inheritedOnly(socketpairScheme, p.pair)
	}
	if !order.overStdio() { // else nobody has the other ends of its pipes
		proves := d.secret != nil || d.TLS.pin != ""
		d.vouch = func(peer *Peer) error { return p.vouch(peer, proves) }
	}
	return &d
}

// attach notes what it takes to find a plugin again that may outlive this process.
func (p *instance) attach(at launchAddr, dialled *Config) (err error) {
	if p.cfg.Launch.Detach <= 0 {
		return nil
	}
	a := Attachment{Address: at.uri(), Pid: p.pid(), Pin: dialled.TLS.pin}
	if dialled.secret != nil {
		a.Secret = strings.TrimSpace(dialled.secret.text())
	}
	if a.Pin != "" {
		a.Key, err = dialled.TLS.autoTLSKey()
	}
	a.Started, _ = startedAt(a.Pid) // or nobody knows
	p.attachment = a
	return err
}
