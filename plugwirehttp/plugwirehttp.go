// Package plugwirehttp shows the state of connections, servers, pools and plugins
// over net/http. Use Publish to have their Stats in expvar's /debug/vars, and Health
// for the address that a load balancer or Kubernetes asks whether all is well:
//
//	plugwirehttp.Publish("greeter", plugin)
//	http.Handle("/healthz", plugwirehttp.Health(plugwirehttp.Call(plugin, "health")))
package plugwirehttp

import (
	"context"
	"expvar"
	"fmt"
	"net/http"
	"time"

	"github.com/plugwire/plugwire"
)

// Publish has expvar show source's Stats, as JSON under the given name, whenever
// it is asked. source is a *plugwire.Conn, Server, Pool or Plugin. As expvar.Publish
// does, it panics when the name is taken.
func Publish[S any](name string, source interface{ Stats() S }) {
	expvar.Publish(name, expvar.Func(func() any { return source.Stats() }))
}

// A Check returns nil when what it looks at is well.
type Check func(ctx context.Context) error

// Call returns a Check that calls a method of the other side, with an empty request.
// It is for a *plugwire.Pool or Plugin; of a Conn, Ping asks as well without a method.
func Call(c plugwire.Caller, method string) Check {
	return func(ctx context.Context) error {
		_, err := c.Call(ctx, method, nil)
		return err
	}
}

// Ping returns a Check that asks the other side of a connection for a sign of life.
func Ping(c *plugwire.Conn) Check {
	return func(ctx context.Context) error {
		_, err := c.Ping(ctx)
		return err
	}
}

// healthTimeout bounds all checks of one request together.
const healthTimeout = 5 * time.Second

// Health returns a handler that answers GET and HEAD with status 200 when all
// checks are well, one after the other and within 5 seconds, and else with 503
// (Service Unavailable) and the first error's text, which may name files and
// addresses: it is for those who run the program.
func Health(checks ...Check) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), healthTimeout)
		defer cancel()
		for _, check := range checks {
			if err := check(ctx); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintln(w, "ok")
	})
}
