package plugwiretest_test

import (
	"testing"
	"time"

	"github.com/plugwire/plugwire"
	"github.com/plugwire/plugwire/plugwiretest"
)

// What reads and writes take at a time does not matter, from the first byte of the
// handshake on, and neither does a Write that takes less than it was given and
// says nothing.
func TestX4ShortReadsAndWrites(t *testing.T) {
	tls := testTLS(t)
	for name, f := range map[string]faults{
		"single bytes read":       {MaxRead: 1},
		"single bytes written":    {MaxWrite: 1},
		"half of a write":         {ShortWrite: true},
		"single bytes of a write": {ShortWrite: true, MaxWrite: 1},
		"single bytes both ways":  {MaxRead: 1, MaxWrite: 1, ShortWrite: true},
		"odd pieces":              {MaxRead: 13, MaxWrite: 7, ShortWrite: true},
	} {
		for over, tune := range map[string]func(*plugwire.Config){"plain": nil, "TLS": tls} {
			t.Run(name+"/"+over, func(t *testing.T) {
				if over == "TLS" && tune == nil {
					t.Skip("built without TLS")
				}
				watchdog(t)
				near, far := plugwiretest.NetPair(t)
				x, y := connect(t, plugwiretest.Faulty(near, f), plugwiretest.Faulty(far, f), func(c *plugwire.Config) {
					c.HandshakeTimeout = 3 * time.Second
					if tune != nil {
						tune(c)
					}
				})
				l := load{callers: 2, calls: 3, notes: 4, messages: 4, sizes: []int{10, 100, 900}, lag: watchLag(t),
					fail: func(err error) { t.Error(err) }}
				l.run(t, x, y)
				l.run(t, y, x)
				closing(t, l.lag, 0, x, y)
				x.settled(t)
				y.settled(t)
			})
		}
	}
}
