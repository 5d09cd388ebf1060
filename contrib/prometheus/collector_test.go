package prometheus

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plugwire/plugwire"
	prom "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// A plugin has Stats too.
var _ = func(p *plugwire.Plugin) prom.Collector { return NewCollector("plugin", p) }

// scrape asks for the metrics as Prometheus does.
func scrape(t *testing.T, url string) map[string]*dto.MetricFamily {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%s: %v: %s", resp.Status, err, b)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(b)))
	if err != nil {
		t.Fatalf("%v in\n%s", err, b)
	}
	return families
}

// find returns the metric with these labels, written "name=value name=value".
func find(t *testing.T, families map[string]*dto.MetricFamily, name, labels string) *dto.Metric {
	t.Helper()
	var have []string
	for _, m := range families["plugwire_"+name].GetMetric() {
		matches := true
		pairs := make(map[string]string)
		for _, l := range m.Label {
			pairs[l.GetName()] = l.GetValue()
		}
		for want := range strings.FieldsSeq(labels) {
			k, v, _ := strings.Cut(want, "=")
			matches = matches && pairs[k] == v
		}
		if matches {
			return m
		}
		have = append(have, fmt.Sprint(pairs))
	}
	t.Errorf("no %s with %s, but %s", name, labels, strings.Join(have, "; "))
	return &dto.Metric{}
}

func value(m *dto.Metric) float64 {
	return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
}

// used sets up a server and a pool with three calls behind them, one that is in
// flight, a stream and a one-way message, and an address where nobody is.
func used(t *testing.T) (url string) {
	unblock := make(chan struct{})
	mux := plugwire.NewMux()
	mux.HandleFunc("echo", func(_ context.Context, req []byte) ([]byte, error) { return req, nil })
	mux.HandleFunc("missing", func(context.Context, []byte) ([]byte, error) {
		return nil, &plugwire.Error{Code: plugwire.NotFound}
	})
	mux.HandleFunc("own", func(context.Context, []byte) ([]byte, error) { return nil, &plugwire.Error{Code: 1000} })
	mux.HandleFunc("slow", func(context.Context, []byte) ([]byte, error) { <-unblock; return nil, nil })
	mux.HandleStream("stream", func(s *plugwire.Stream) error { <-unblock; return nil })
	server := &plugwire.Server{Mux: mux, Config: &plugwire.Config{Metrics: true}}
	l, err := server.Listen("tcp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { defer close(served); server.Serve(l) }()
	dead, err := server.Listen("tcp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	cfg := &plugwire.Config{Metrics: true, Pool: plugwire.PoolConfig{Size: 2, MaxBackOff: time.Hour}}
	pool := plugwire.NewPool(cfg, "tcp://"+l.Addr().String(), "tcp://"+dead.Addr().String())
	conn, err := plugwire.Dial(t.Context(), "tcp://"+l.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() {
		close(unblock)
		<-ended
		conn.Close()
		pool.Close()
		server.Close()
		<-served
	})
	for range 2 {
		if _, err := pool.Call(t.Context(), "echo", make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	pool.Call(t.Context(), "missing", nil)
	pool.Call(t.Context(), "own", nil)
	if err := pool.Notify(t.Context(), "echo", nil); err != nil {
		t.Fatal(err)
	}
	stream, err := pool.OpenStream(t.Context(), "stream")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send([]byte("message")); err != nil {
		t.Fatal(err)
	}
	go func() { defer close(ended); pool.Call(context.Background(), "slow", nil) }()
	registry := prom.NewPedanticRegistry()
	registry.MustRegister(NewCollector("server", server), NewCollector("pool", pool), NewCollector("conn", conn))
	web := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{Registry: registry}))
	t.Cleanup(web.Close)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		s, p := server.Stats(), pool.Stats()
		if s.CallsServing == 1 && s.StreamsServing == 1 && p.DialErrors > 0 && s.CallsServed >= 4 && s.OneWayHandled == 1 && p.Dialing == 0 {
			return web.URL
		}
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %d calls served, %d being served, %d streams, %d dial errors", s.CallsServed, s.CallsServing, s.StreamsServing, p.DialErrors)
		}
		pool.Call(t.Context(), "echo", nil)
	}
}

func TestScrape(t *testing.T) {
	url := used(t)
	families := scrape(t, url)
	for _, want := range []struct {
		name, labels string
		least, most  float64
	}{
		{"connections", "name=server transport=tcp", 2, 2},
		{"connections_opened_total", "name=pool transport=tcp", 1, 1},
		{"connections_failed_total", "name=pool transport=tcp code=Unavailable", 1, 100},
		{"in_flight", "name=pool kind=call side=sent", 1, 1},
		{"in_flight", "name=server kind=call side=served", 1, 1},
		{"in_flight", "name=server kind=stream side=served", 1, 1},
		{"operations_total", "name=pool kind=oneway side=sent", 1, 1},
		{"messages_total", "name=server direction=written", 4, 1000},
		{"bytes_total", "name=server direction=read", 2000, 1e6},
		{"write_bytes", "name=pool", 4, 1000},
		{"stalls_total", "name=conn limit=oneway", 0, 0},
		{"method_in_flight", "name=server method=slow kind=call side=served", 1, 1},
		{"method_in_flight", "name=pool method=stream kind=stream side=sent", 1, 1},
		{"method_ended_total", "name=server method=missing kind=call side=served code=NotFound", 1, 1},
		{"method_ended_total", "name=pool method=own kind=call side=sent code=other", 1, 1},
		{"method_seconds", "name=pool method=missing kind=call side=sent", 1, 1},
		{"pool_connections", "name=pool transport=tcp state=open", 1, 1},
		{"pool_wait_seconds", "name=pool transport=tcp", 1, 1},
		{"pool_dial_errors_total", "name=pool", 1, 100},
	} {
		if got := value(find(t, families, want.name, want.labels)); got < want.least || got > want.most {
			t.Errorf("%s{%s} is %v, want %v to %v", want.name, want.labels, got, want.least, want.most)
		}
	}
	for name, family := range families {
		for _, m := range family.Metric {
			if i := slices.IndexFunc(m.Label, func(l *dto.LabelPair) bool { return l.GetName() == "transport" }); strings.HasPrefix(name, "plugwire_") &&
				(i < 0 || m.Label[i].GetValue() != "tcp") {
				t.Errorf("%s has no transport: %v", name, m.Label)
			}
		}
	}
	h := find(t, families, "method_seconds", "name=pool method=echo").GetHistogram()
	last := uint64(0)
	for _, b := range h.Bucket {
		if b.GetCumulativeCount() < last {
			t.Errorf("buckets go down: %v", h.Bucket)
		}
		last = b.GetCumulativeCount()
	}
	if last != h.GetSampleCount() || h.GetSampleSum() <= 0 {
		t.Errorf("%d of %d within the buckets, %v seconds", last, h.GetSampleCount(), h.GetSampleSum())
	}
}

// TestTheTableHasEachMetric compares docs/METRICS.md with what is described, and
// what is described with what is scraped.
func TestTheTableHasEachMetric(t *testing.T) {
	b, err := os.ReadFile("../../docs/METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	// "| `plugwire_x` | kind | `label`, `label` | ..."
	row := regexp.MustCompile("(?m)^\\| `(plugwire_[a-z_]+)` \\| (\\w+) \\| ([^|]*)\\|")
	documented := make(map[string]string)
	for _, m := range row.FindAllStringSubmatch(string(b), -1) {
		documented[m[1]] = m[2] + " " + strings.NewReplacer("`", "", ",", "", " ", "").Replace(m[3])
	}
	described := regexp.MustCompile(`fqName: "(\w+)".*variableLabels: \{transport,?([^}]*)\}`)
	there := make(map[string]string)
	for _, d := range all {
		m := described.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("%s", d)
		}
		there[m[1]] = strings.ReplaceAll(m[2], ",", "")
	}
	if a, b := slices.Sorted(maps.Keys(documented)), slices.Sorted(maps.Keys(there)); !slices.Equal(a, b) {
		t.Fatalf("documented: %q\nexported:   %q", a, b)
	}
	for name, labels := range there {
		if _, l, _ := strings.Cut(documented[name], " "); l != labels {
			t.Errorf("%s has labels %q, documented are %q", name, labels, l)
		}
	}
	for name, family := range scrape(t, used(t)) {
		kind, _, _ := strings.Cut(documented[name], " ")
		if got := strings.ToLower(family.GetType().String()); strings.HasPrefix(name, "plugwire_") && got != kind {
			t.Errorf("%s is a %s, documented is %q", name, got, kind)
		}
	}
}

func TestRegisteringANameTwiceFails(t *testing.T) {
	registry := prom.NewRegistry()
	pool := plugwire.NewPool(nil, "tcp://127.0.0.1:1")
	defer pool.Close()
	registry.MustRegister(NewCollector("pool", pool))
	if err := registry.Register(NewCollector("pool", pool)); err == nil {
		t.Error("it is registered twice")
	}
}
