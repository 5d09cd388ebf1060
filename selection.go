package plugwire

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// Selection says which transport was chosen, and why.
type Selection struct {
	Chosen     string      // the transport in use
	Candidates []Candidate // all that were considered, in order of preference
}

// Candidate is one transport that was considered.
type Candidate struct {
	Transport string
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
		fmt.Fprintf(w, "%s %s\t%s\n", mark, c.Transport, c.Reason)
	}
	w.Flush()
	return b.String()
}

// selectionOf explains the choice of a plugin that was offered the transports of
// offer and answered with line.
func selectionOf(offer []Candidate, line *launchLine, cfg *Config, asked *launchOrder) *Selection {
	s := &Selection{Chosen: line.network}
	order := "this platform's order of preference"
	if cfg.Transports != nil {
		order = "the order of " + cfg.orderName()
	}
	passed := false
	for _, c := range offer {
		switch skipped := line.field(lineSkip + c.Transport); {
		case c.Reason != "":
		case c.Transport == line.network:
			c.Reason = "chosen: the first in " + order + " that the plugin could offer"
			if asked.autoTLS(c.Transport) {
				c.Reason += "; with automatic mutual TLS"
			}
			passed = true
		case skipped != "":
			c.Reason = "the plugin could not: " + plainText(skipped, maxLaunchSeen)
		case passed:
			c.Reason = "not needed: " + line.network + " comes before it in " + order
		default:
			c.Reason = "passed over by the plugin"
		}
		s.Candidates = append(s.Candidates, c)
	}
	return s
}
