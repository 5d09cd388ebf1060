package plugwirehttp_test

import (
	"context"
	"encoding/json"
	"errors"
	"expvar"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plugwire/plugwire"
	"github.com/plugwire/plugwire/plugwirehttp"
	"github.com/plugwire/plugwire/plugwiretest"
)

// get asks a handler and returns its status and what it says.
func get(t *testing.T, method, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestPublish(t *testing.T) {
	mux := plugwire.NewMux()
	mux.HandleFunc("echo", func(_ context.Context, req []byte) ([]byte, error) { return req, nil })
	s := &plugwire.Server{Mux: mux, Config: &plugwire.Config{Metrics: true}}
	l, err := s.Listen(plugwire.Transports()[0] + ":")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { defer close(served); s.Serve(l) }()
	defer func() { s.Close(); <-served }()
	pool := plugwire.NewPool(&plugwire.Config{Metrics: true}, l.Addr().Network()+"://"+l.Addr().String())
	defer pool.Close()
	for range 3 {
		if _, err := pool.Call(t.Context(), "echo", nil); err != nil {
			t.Fatal(err)
		}
	}
	ended := func() bool { // a call counts as ended soon after its caller has the reply
		m := pool.Stats().Methods
		return len(m) == 1 && m[0].Ended[plugwire.OK] == 3
	}
	for deadline := time.Now().Add(10 * time.Second); !ended() && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	plugwirehttp.Publish("test server", s)
	plugwirehttp.Publish("test pool", pool)
	web := httptest.NewServer(expvar.Handler())
	defer web.Close()
	_, body := get(t, "GET", web.URL)
	var vars struct {
		Server plugwireStats `json:"test server"`
		Pool   plugwireStats `json:"test pool"`
	}
	if err := json.Unmarshal([]byte(body), &vars); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	transport := l.Addr().Network()
	for side, v := range map[string]plugwireStats{"server": vars.Server, "pool": vars.Pool} {
		if len(v.Transports) != 1 || v.Transports[0].Transport != transport || v.ConnsOpened != 1 || v.CallsSent+v.CallsServed != 3 {
			t.Errorf("%s: %+v", side, v)
			continue
		}
		if m := v.Transports[0].Methods; len(m) != 1 || m[0].Method != "echo" || m[0].Ended["OK"] != 3 || m[0].Latency.Count != 3 || m[0].Latency.P999 <= 0 {
			t.Errorf("%s: %+v", side, m)
		}
	}
	if e := vars.Pool.Endpoints; vars.Pool.Open != 1 || len(e) != 1 || e[0].CallsSent != 3 {
		t.Errorf("pool: %d open, %+v", vars.Pool.Open, e)
	}
}

// plugwireStats is what somebody who reads the JSON expects.
type plugwireStats struct {
	ConnsOpened, CallsSent, CallsServed uint64
	Open                                int
	Endpoints                           []struct{ CallsSent int }
	Transports                          []struct {
		Transport string
		Methods   []struct {
			Method  string
			Ended   map[string]int
			Latency struct {
				Count int
				P999  float64
			}
		}
	}
}

func TestHealth(t *testing.T) {
	var sick atomic.Bool
	mux := plugwire.NewMux()
	mux.HandleFunc("health", func(context.Context, []byte) ([]byte, error) {
		if sick.Load() {
			return nil, errors.New("no space left")
		}
		return nil, nil
	})
	conn, _ := plugwiretest.Pair(t, nil, &plugwire.Config{Mux: mux})
	web := httptest.NewServer(plugwirehttp.Health(plugwirehttp.Ping(conn), plugwirehttp.Call(conn, "health")))
	defer web.Close()
	wants := func(method string, status int, text string) {
		t.Helper()
		if got, body := get(t, method, web.URL); got != status || !strings.Contains(body, text) || method == "HEAD" && body != "" {
			t.Errorf("%s: %d %q, want %d and %q", method, got, body, status, text)
		}
	}
	wants("GET", 200, "ok\n")
	wants("HEAD", 200, "")
	wants("POST", 405, "")
	sick.Store(true)
	wants("GET", 503, "no space left")
	sick.Store(false)
	wants("GET", 200, "ok\n")
	conn.Close()
	wants("GET", 503, "closed")
}

// TestHealthWithoutChecks is for a program of which it is enough that it answers.
func TestHealthWithoutChecks(t *testing.T) {
	web := httptest.NewServer(plugwirehttp.Health())
	defer web.Close()
	if status, _ := get(t, "GET", web.URL); status != 200 {
		t.Errorf("status %d", status)
	}
}
