package plugwire

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// choiceRow is a row of docs/TRANSPORTS.md.
type choiceRow struct{ allowed, platform, settings, need, failures, choice string }

func choiceTable(t *testing.T) (rows []choiceRow) {
	t.Helper()
	b, err := os.ReadFile("docs/TRANSPORTS.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(b), "| allowed | platform | settings | need | failures | choice |\n|---|---|---|---|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	if !ok {
		t.Fatal("docs/TRANSPORTS.md has no such table")
	}
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 6 {
			t.Fatalf("this row has %d cells: %s", len(cells), line)
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows = append(rows, choiceRow{cells[0], cells[1], cells[2], cells[3], cells[4], cells[5]})
	}
	return rows
}

var choicePlatforms = map[string]*platform{
	"Linux":             {transports: []string{"unix", "tcp"}, tellsPeer: true, tls: true, socketpair: true},
	"Linux without TLS": {transports: []string{"unix", "tcp"}, tellsPeer: true, socketpair: true},
	"Solaris":           {transports: []string{"unix", "tcp"}, tls: true, socketpair: true},
	"Windows":           {transports: []string{"npipe", "tcp"}, tellsPeer: true, tls: true},
	"js":                {tls: true},
}

// config is the host's Config of a row.
func (r *choiceRow) config(t *testing.T) *Config {
	t.Helper()
	c := new(Config)
	if r.allowed != "default" {
		c.Transports = strings.Split(r.allowed, ", ")
	}
	for need := range strings.SplitSeq(r.need, ", ") {
		switch need {
		case "Remote":
			c.Need.Remote = true
		case "Encrypted":
			c.Need.Encrypted = true
		case "VerifiedPeer":
			c.Need.VerifiedPeer = true
		case "":
		default:
			t.Fatalf("need %q", need)
		}
	}
	switch r.settings {
	case "AutoMTLS":
		c.Launch.AutoMTLS = true
	case "NoAutoMTLS":
		c.Launch.NoAutoMTLS = true
	case "":
	default:
		t.Fatalf("settings %q", r.settings)
	}
	return c
}

// choose does what host and plugin do together.
func choose(c *Config, pf *platform, fails func(scheme string) bool) string {
	for _, cand := range c.candidates(pf) {
		if cand.Reason == "" && !fails(cand.Transport) {
			if c.autoTLS(cand.Transport) {
				return cand.Transport + " with TLS"
			}
			return cand.Transport
		}
	}
	return "none"
}

// TestSelectionTable: each row of docs/TRANSPORTS.md gives the choice that it says,
// also with a real plugin, which fails as it says, where this is the row's platform.
func TestSelectionTable(t *testing.T) {
	rows := choiceTable(t)
	if len(rows) < 20 {
		t.Fatalf("%d rows", len(rows))
	}
	leavesNoDescriptors(t)
	for _, r := range rows {
		t.Run(fmt.Sprintf("%+v", r), func(t *testing.T) {
			t.Parallel()
			pf := choicePlatforms[r.platform]
			if pf == nil {
				t.Fatalf("platform %q", r.platform)
			}
			fails := func(scheme string) bool {
				return slices.ContainsFunc(strings.Split(r.failures, ", "), func(f string) bool { return f == "bind "+scheme || f == "dial "+scheme })
			}
			if got := choose(r.config(t), pf, fails); got != r.choice {
				t.Fatalf("%s, want %s", got, r.choice)
			}
			here := thisPlatform()
			if runtime.GOOS != "linux" || r.platform != "Linux" && r.platform != "Linux without TLS" || pf.tls != here.tls {
				return
			}
			lt := newParallelLaunchTest(t, "fails")
			lt.cmd.Env = append(lt.cmd.Env, failsEnv+"="+r.failures)
			dir := lt.cfg.Unix.Dir
			lt.cfg = r.config(t)
			lt.cfg.Unix.Dir = dir
			p, err := Launch(t.Context(), lt.cmd, lt.cfg)
			if err != nil {
				checkLaunchError(t, err, CodeOf(err))
				if r.choice != "none" {
					t.Fatal(err)
				}
				return
			}
			defer p.Close()
			lt.greets(p)
			got := p.Selection().Chosen
			if p.Conn().sealer != nil {
				got += " with TLS"
			}
			if got != r.choice {
				t.Fatalf("%s, want %s\n%v", got, r.choice, p.Selection())
			}
		})
	}
}

// failsEnv says what the plugin "fails" fails to do: "bind unix, dial tcp".
const failsEnv = "PLUGWIRE_TEST_FAILS"

func init() {
	behaviours["fails"] = func() {
		mux := testPluginMux()
		cfg := &Config{Custom: map[string]Transport{}}
		for _, scheme := range Transports() {
			cfg.Custom[scheme] = failingTransport{Transport: builtinTransports[scheme], scheme: scheme}
		}
		mux.HandleFunc("open", func(context.Context, []byte) ([]byte, error) {
			openMu.Lock()
			defer openMu.Unlock()
			return []byte(strings.Join(openSchemes, ",")), nil
		})
		must(ServePlugin(mux, cfg))
	}
}

var (
	openMu      sync.Mutex
	openSchemes []string // that the plugin "fails" listens on
)

// failingTransport fails as failsEnv says.
type failingTransport struct {
	Transport
	scheme string
}

func (f failingTransport) Listen(ctx context.Context, addr string, cfg *Config) (net.Listener, error) {
	fails := strings.Split(os.Getenv(failsEnv), ", ")
	if slices.Contains(fails, "bind "+f.scheme) {
		return nil, errors.New("it cannot be bound")
	}
	l, err := f.Transport.Listen(ctx, addr, cfg)
	if err != nil {
		return nil, err
	}
	if slices.Contains(fails, "dial "+f.scheme) {
		l.Close() // at its address there is nobody
		return deadListener{l.Addr(), make(chan struct{}), new(sync.Once)}, nil
	}
	openMu.Lock()
	openSchemes = append(openSchemes, f.scheme)
	openMu.Unlock()
	return &countedListener{Listener: l, scheme: f.scheme}, nil
}

type countedListener struct {
	net.Listener
	scheme string
}

func (l *countedListener) Close() error {
	openMu.Lock()
	openSchemes = slices.DeleteFunc(openSchemes, func(s string) bool { return s == l.scheme })
	openMu.Unlock()
	return l.Listener.Close()
}

// deadListener has an address where nobody listens.
type deadListener struct {
	addr net.Addr
	done chan struct{}
	once *sync.Once
}

func (l deadListener) Accept() (net.Conn, error) { <-l.done; return nil, net.ErrClosed }
func (l deadListener) Addr() net.Addr            { return l.addr }
func (l deadListener) Close() error              { l.once.Do(func() { close(l.done) }); return nil }

// A further candidate never makes the choice less secure, whatever is needed and
// whatever fails; and what is chosen has what is needed, also from a list of the
// program's.
func TestAFurtherCandidateNeverLowersTheSecurity(t *testing.T) {
	all := []string{"unix", "npipe", "tcp"}
	subset := func(of []string) (s []string) {
		for _, x := range of {
			if rand.IntN(2) == 0 {
				s = append(s, x)
			}
		}
		rand.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
		return s
	}
	// What is safe about a choice, told in other words than score's.
	security := func(choice string, pf *platform) int {
		scheme, tls := strings.CutSuffix(choice, " with TLS")
		switch {
		case choice == "none":
			return -1
		case tls, scheme != "tcp" && pf.tellsPeer:
			return 2
		case scheme != "tcp":
			return 1
		}
		return 0
	}
	for range 20000 {
		yes := func() bool { return rand.IntN(3) == 0 }
		c := &Config{Need: Need{yes(), yes(), yes()}}
		c.Launch.AutoMTLS, c.Launch.NoAutoMTLS = yes(), yes()
		failing := subset(all)
		fails := func(scheme string) bool { return slices.Contains(failing, scheme) }
		more := &platform{transports: subset(all), tellsPeer: yes(), tls: !yes()}
		fewer := *more
		fewer.transports = subset(more.transports)
		was, is := choose(c, &fewer, fails), choose(c, more, fails)
		if security(is, more) < security(was, more) {
			t.Fatalf("with %q it is %q, with %q %q: %+v %+v", fewer.transports, was, more.transports, is, c.Need, more)
		}
		c.Transports = subset(all)
		for _, choice := range []string{was, is, choose(c, more, fails)} {
			scheme, tls := strings.CutSuffix(choice, " with TLS")
			if choice != "none" && (fails(scheme) || c.Need.Remote && scheme != "tcp" || c.Need.Encrypted && !tls ||
				c.Need.VerifiedPeer && !tls && (scheme == "tcp" || !more.tellsPeer) || tls && !more.tls) {
				t.Fatalf("%q of %q: %+v %+v", choice, c.Transports, c.Need, more)
			}
		}
	}
}

// The plugin listens on what was not chosen only until its host is there.
func TestUnusedListenersOfAPluginClose(t *testing.T) {
	if len(Transports()) < 2 || !builtWithTLS {
		t.Skip("this platform has one transport")
	}
	for failure, want := range map[string]string{"": Transports()[0], "dial " + Transports()[0]: "tcp"} {
		lt := newLaunchTest(t, "fails")
		lt.cmd.Env = append(lt.cmd.Env, failsEnv+"="+failure)
		p := lt.launch()
		open, err := p.Call(t.Context(), "open", nil)
		if err != nil || string(open) != want {
			t.Errorf("it listens on %q, want %q: %v", open, want, err)
		}
		s := p.Selection()
		if s.Chosen != want || failure != "" && !strings.Contains(s.Candidates[0].Reason, "it could not be dialled: dial "+Transports()[0]) {
			t.Error(s)
		}
		t.Log("\n" + s.String())
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// When no address can be dialled the error has every candidate with what was
// wrong with it.
func TestLaunchErrorHasTheSelection(t *testing.T) {
	if len(Transports()) < 2 || !builtWithTLS {
		t.Skip("this platform has one transport")
	}
	local := Transports()[0]
	lt := newLaunchTest(t, "fails")
	lt.cmd.Env = append(lt.cmd.Env, failsEnv+"=dial "+local+", dial tcp")
	_, err := Launch(t.Context(), lt.cmd, lt.cfg)
	checkLaunchError(t, err, CodeOf(err), "connecting: none of the plugin's addresses can be dialled", local+" (score 30",
		"it could not be dialled: dial "+local, "tcp (score 303): it could not be dialled: dial tcp://127.0.0.1:")

	lt = newLaunchTest(t, "good")
	lt.cfg.Transports, lt.cfg.Need.Remote = []string{local, "warp"}, true
	_, err = Launch(t.Context(), lt.cmd, lt.cfg)
	checkLaunchError(t, err, Unavailable, "no transport can be used: "+local+": Need.Remote: it does not leave this machine; warp: this host has no such transport")
}

// The plugin's own needs count as well.
func TestNeedsOfThePlugin(t *testing.T) {
	if len(Transports()) < 2 || !builtWithTLS {
		t.Skip("this platform has one transport")
	}
	lt := newLaunchTest(t, "needs remote")
	s := lt.launch().Selection()
	if s.Chosen != "tcp" || !strings.Contains(s.Candidates[0].Reason, "the plugin could not: ") || !strings.Contains(s.Candidates[0].Reason, "Need.Remote") {
		t.Fatal(s)
	}
}

func init() {
	behaviours["needs remote"] = func() { must(ServePlugin(testPluginMux(), &Config{Need: Need{Remote: true}})) }
}

// Needs hold for connections that nobody launched.
func TestNeedsOfSingleConnections(t *testing.T) {
	for _, test := range []struct {
		addr string
		need Need
		says string
	}{
		{localTransport + ":", Need{Remote: true}, "Config.Need.Remote: it does not leave this machine"},
		{localTransport + ":", Need{Encrypted: true}, "Config.Need.Encrypted: it is not encrypted"},
		{"tcp:", Need{Encrypted: true}, "Config.Need.Encrypted: it is not encrypted"},
		{"tcp:", Need{VerifiedPeer: true}, "Config.Need.VerifiedPeer: nothing tells who the peer is"},
	} {
		_, err := (&Server{Config: &Config{Need: test.need}}).Listen(test.addr)
		if CodeOf(err) != PermissionDenied || !strings.Contains(err.Error(), test.says) {
			t.Errorf("listening: %v, want %s", err, test.says)
		}
		s := &Server{Mux: NewMux()}
		l, err := s.Listen(test.addr)
		if err != nil {
			t.Fatal(err)
		}
		go s.Serve(l)
		defer s.Close()
		_, err = Dial(t.Context(), addrURI(l.Addr()), &Config{Need: test.need})
		if CodeOf(err) != PermissionDenied || !strings.Contains(err.Error(), test.says) {
			t.Errorf("dialling: %v, want %s", err, test.says)
		}
	}
	// A connection that came by another way is looked at itself, and its other side told.
	ours, theirs := net.Pipe()
	told := make(chan error, 1)
	go func() {
		_, err := NewConn(context.Background(), theirs, nil)
		told <- err
	}()
	err := (&Server{Mux: NewMux(), Config: &Config{Need: Need{VerifiedPeer: true}}}).ServeConn(t.Context(), ours)
	if CodeOf(err) != PermissionDenied || !strings.Contains(err.Error(), "Config.Need.VerifiedPeer") {
		t.Error(err)
	}
	if err := <-told; CodeOf(err) != PermissionDenied || !strings.Contains(err.Error(), "Need.VerifiedPeer") {
		t.Error(err)
	}
}
