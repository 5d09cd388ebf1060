//go:build plugwire_notls

package plugwire

import (
	"slices"
	"strings"
	"testing"
)

func testTLS() TLSConfig { panic("PLUGWIRE_TEST_TLS is set, but this build has no TLS") }

func stallsOverTLS(*testing.T) []stall { return nil }

// A transport that automatic mutual TLS is for cannot be had by default, and
// everybody who asks for TLS is told.
func TestLaunchWithoutTLS(t *testing.T) {
	lt := newLaunchTest(t, "good")
	lt.cfg.Launch.NoAutoMTLS = false
	p := lt.launch()
	lt.greets(p)
	if s := p.Selection(); s.Chosen != localTransport || !slices.ContainsFunc(s.Candidates, func(c Candidate) bool {
		return c.Transport == "tcp" && strings.Contains(c.Reason, "built")
	}) {
		t.Error(s)
	}
	p.Close()
	for says, set := range map[string]func(*Config){
		"tcp: it needs automatic mutual TLS, and this program is built without TLS": func(c *Config) { c.Transports = []string{"tcp"} },
		"tcp (score 303): it needs automatic mutual TLS":                            func(c *Config) { c.Launch.AutoMTLS = true },
		"Config.TLS is set, but this program is built without TLS":                  func(c *Config) { c.TLS.CertFile = "x" },
	} {
		cfg := *lt.cfg
		set(&cfg)
		if p, err := Launch(t.Context(), lt.cmd, &cfg); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, %v; want %s", p, err, says)
		}
	}
}
