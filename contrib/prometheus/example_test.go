package prometheus_test

import (
	"log"
	"net/http"

	"github.com/plugwire/plugwire"
	"github.com/plugwire/plugwire/contrib/prometheus"
	prom "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

func Example() {
	server := &plugwire.Server{Mux: plugwire.NewMux(), Config: &plugwire.Config{Metrics: true}}
	prom.MustRegister(prometheus.NewCollector("app", server))
	http.Handle("/metrics", promhttp.Handler())
	log.Fatal(http.ListenAndServe("localhost:9100", nil))
}
