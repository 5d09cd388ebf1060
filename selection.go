package plugwire

import (
	"cmp"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/plugwire/plugwire/internal/peercred"
)

// Need is what every connection must have. A transport that lacks some of it is
// not used, whether it was listed or is the last that is left. Zero: nothing but
// what Config says elsewhere.
type Need struct {
	Remote       bool // it can reach another machine
	Encrypted    bool // TLS encrypts it; in a launch, this also turns Launch.AutoMTLS on
	VerifiedPeer bool // the kernel, or TLS, says who is on the other side (Peer.Verified)
}

// Selection says which transport was chosen, and why.
type Selection struct {
	Chosen     string      // the transport in use
	Candidates []Candidate // all that were considered, in order of preference
}

// Candidate is one transport that was considered.
type Candidate struct {
	Transport string
	Score     int    // what orders the default list, see docs/TRANSPORTS.md; 0 where Config.Transports does
	Reason    string // why it was chosen, or why not
}

// String returns a table with a line for each candidate, the chosen one marked
// with an arrow.
func (s *Selection) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, c := range s.Candidates {
		mark := "  "
		if c.Transport == s.Chosen {
			mark = "->"
		}
		score := "-"
		if c.Score != 0 {
			score = fmt.Sprint(c.Score)
		}
		fmt.Fprintf(w, "%s %s\t%s\t%s\n", mark, c.Transport, score, c.Reason)
	}
	w.Flush()
	return b.String()
}

// line is the table in one line, for errors.
func (s *Selection) line() string {
	var b strings.Builder
	for i, c := range s.Candidates {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(c.Transport)
		if c.Score != 0 {
			fmt.Fprintf(&b, " (score %d)", c.Score)
		}
		b.WriteString(": " + c.Reason)
	}
	return b.String()
}

// A platform is what a choice depends on beside Config.
type platform struct {
	transports []string // that it offers
	tellsPeer  bool     // its kernel names the peer of a local transport
	tls        bool     // the program is built with TLS
	socketpair bool     // it has that transport, which is offered on request alone
}

func thisPlatform() *platform {
	return &platform{transports: Transports(), tellsPeer: peercred.Tells, tls: builtWithTLS, socketpair: haveSocketpair}
}

// traits are what a transport is by itself, without TLS.
type traits struct {
	remote  bool // it may reach other machines
	private bool // nobody but the two ends can read or write
	named   bool // the kernel names the peer where it can
	speed   int  // a rank: more is faster
}

// transportTraits are those of the built-in transports. The program's own have
// none but that they may be remote: it knows what it has made. The kernel says of a
// socketpair who made it; and whether stdio leaves the machine, and who can read
// it, is up to the command.
var transportTraits = map[string]traits{
	"unix":           {private: true, named: true, speed: 9},
	"npipe":          {private: true, named: true, speed: 7},
	"tcp":            {remote: true, speed: 6},
	socketpairScheme: {private: true, speed: 9},
	stdioScheme:      {remote: true, speed: 8},
}

func (c *Config) traitsOf(scheme string) traits {
	if _, own := c.Custom[scheme]; own {
		return traits{remote: true}
	}
	return transportTraits[scheme]
}

// tlsSlows is what TLS costs in speed.
const tlsSlows = 3

// score is 200 when somebody says who is on the other side, 100 when nobody else
// can read along, and the rank of speed, which so only decides between candidates
// that are equally safe.
func (t traits) score(tls bool, pf *platform) int {
	score := t.speed
	if tls {
		score -= tlsSlows
	}
	if tls || t.named && pf.tellsPeer {
		score += 200
	}
	if tls || t.private {
		score += 100
	}
	return max(score, 1)
}

// misses says what of Need a transport lacks, or returns "".
func (c *Config) misses(scheme string, tls bool, pf *platform) string {
	t := c.traitsOf(scheme)
	switch {
	case c.Need.Remote && !t.remote:
		return "Need.Remote: it does not leave this machine"
	case (c.Need.Encrypted || c.Need.VerifiedPeer) && c.overItself(scheme):
		return "Need: the keys of automatic mutual TLS would travel on the connection that they protect; only TLS that Config.TLS sets counts here"
	case c.Need.Encrypted && !tls:
		return "Need.Encrypted: it is not encrypted"
	case c.Need.VerifiedPeer && !tls && t.named && !pf.tellsPeer:
		return "Need.VerifiedPeer: " + runtime.GOOS + " does not tell who the peer is"
	case c.Need.VerifiedPeer && !tls && !t.named:
		return "Need.VerifiedPeer: nothing tells who the peer is"
	}
	return ""
}

// lacks says what of Need a connection lacks that is made, or returns "".
func (n *Need) lacks(peer *Peer, tls bool) string {
	switch {
	case n.Encrypted && !tls:
		return "Need.Encrypted: the connection is not encrypted"
	case n.VerifiedPeer && !peer.Verified:
		return "Need.VerifiedPeer: nothing tells who the peer is"
	}
	return ""
}

// autoTLS reports whether a launch uses automatic mutual TLS over a transport.
func (c *Config) autoTLS(scheme string) bool {
	l := &c.Launch
	_, own := c.Custom[scheme]
	inPlain := c.traitsOf(scheme).private || !own && scheme == stdioScheme
	return !l.NoAutoMTLS && !c.hasTLS() && (l.AutoMTLS || c.Need.Encrypted || !inPlain)
}

// overItself says that the pins of automatic mutual TLS travel on the connection
// that they protect: who is in between could exchange them.
func (c *Config) overItself(scheme string) bool {
	_, own := c.Custom[scheme]
	return !own && scheme == stdioScheme && (c.TLS.pin != "" || !c.hasTLS())
}

// candidates lists the transports of a launch, best first. Those that cannot be
// used have a Reason. A list of the program's is an order; scores order the
// platform's.
func (c *Config) candidates(pf *platform) []Candidate {
	schemes := c.Transports
	if schemes == nil {
		schemes = pf.transports
	}
	list := make([]Candidate, len(schemes))
	for i, scheme := range schemes {
		_, own := c.Custom[scheme]
		auto := c.autoTLS(scheme)
		cand := Candidate{Transport: scheme}
		inherits := !own && (scheme == stdioScheme || scheme == socketpairScheme && pf.socketpair)
		switch {
		case inherits && c.Launch.Detach > 0:
			cand.Reason = "who reattaches could not connect: Config.Launch.Detach is set"
		case inherits && scheme == stdioScheme && len(schemes) > 1:
			cand.Reason = "it must be the only transport: the plugin learns everything on stdin then"
		case scheme == "" || !isScheme(scheme) || !own && !inherits && !slices.Contains(pf.transports, scheme):
			cand.Reason = "this host has no such transport"
		case auto && !pf.tls:
			cand.Reason = "it needs automatic mutual TLS, and this program is built without TLS (Launch.NoAutoMTLS has it do without)"
		default:
			cand.Reason = c.misses(scheme, auto || c.hasTLS(), pf)
		}
		if c.Transports == nil {
			cand.Score = c.traitsOf(scheme).score(auto || c.hasTLS(), pf)
		}
		list[i] = cand
	}
	if c.Transports == nil {
		slices.SortStableFunc(list, func(a, b Candidate) int { return cmp.Compare(b.Score, a.Score) })
	}
	return list
}

// selectionOf explains the choice of a host whose plugin answered with line when
// it was offered the transports of offer. failed are those that could not be
// dialled, chosen is "" when none could.
func selectionOf(offer []Candidate, line *launchLine, failed map[string]error, chosen string, cfg *Config, asked *launchOrder) *Selection {
	s := &Selection{Chosen: chosen}
	order := "the order of score"
	if cfg.Transports != nil {
		order = "the order of " + cfg.orderName()
	}
	passed := false
	for _, c := range offer {
		switch skipped := line.field(lineSkip + c.Transport); {
		case c.Reason != "":
		case failed[c.Transport] != nil:
			c.Reason = "it could not be dialled: " + plainText(strings.TrimPrefix(failed[c.Transport].Error(), "plugwire: "), maxLaunchSeen)
		case c.Transport == chosen:
			c.Reason = "chosen: the first in " + order + " that both could use"
			if asked.autoTLS(c.Transport) {
				c.Reason += "; with automatic mutual TLS"
			}
			passed = true
		case skipped != "":
			c.Reason = "the plugin could not: " + plainText(skipped, maxLaunchSeen)
		case passed:
			c.Reason = "not needed: " + chosen + " comes before it in " + order
		default:
			c.Reason = "passed over by the plugin"
		}
		s.Candidates = append(s.Candidates, c)
	}
	return s
}
