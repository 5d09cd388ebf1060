// Service is a server and its client as docs/DEPLOY.md deploys them: under systemd,
// as a sidecar, and on many machines. Each setting that the manifests need is a flag.
//
//	service serve -listen unix:///run/app/app.sock
//	service call -dial unix:///run/app/app.sock
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/plugwire/plugwire"
	"github.com/plugwire/plugwire/plugwirehttp"
	"github.com/plugwire/plugwire/resolver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "service:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage: service serve|call [flags]; -h lists them")

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	cfg := &plugwire.Config{Metrics: true, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	flags := flag.NewFlagSet("service "+args[0], flag.ContinueOnError)
	t := &cfg.TLS
	flags.StringVar(&t.CertFile, "cert", "", "PEM `file` of this side's certificate; turns TLS on")
	flags.StringVar(&t.KeyFile, "key", "", "PEM `file` of its key")
	flags.StringVar(&t.CAFile, "ca", "", "PEM `file` of the authorities that sign the other side's certificate")
	flags.Func("names", "DNS `names`, of which the other side's certificate must have one", func(s string) error {
		t.Names = strings.Split(s, ",")
		return nil
	})
	flags.StringVar(&t.TrustDomain, "trust-domain", "", "SPIFFE trust `domain` of the other side")
	web := flags.String("http", "", "`address` of /healthz and /debug/vars")
	switch args[0] {
	case "serve":
		return serve(ctx, flags, args[1:], cfg, web)
	case "call":
		return call(ctx, flags, args[1:], cfg, web)
	}
	return errUsage
}

// numbers is a flag that is a list of user or group ids.
func numbers(to *[]int) func(string) error {
	return func(s string) error {
		for field := range strings.SplitSeq(s, ",") {
			n, err := strconv.Atoi(field)
			if err != nil {
				return err
			}
			*to = append(*to, n)
		}
		return nil
	}
}

func serve(ctx context.Context, flags *flag.FlagSet, args []string, cfg *plugwire.Config, web *string) error {
	listen := flags.String("listen", "", "`address` to listen on")
	flags.Func("mode", "of a Unix socket, in octal `digits`", func(s string) error {
		mode, err := strconv.ParseUint(s, 8, 9)
		cfg.Unix.Mode = fs.FileMode(mode)
		return err
	})
	flags.IntVar(&cfg.Unix.Group, "group", 0, "`gid` of a Unix socket")
	flags.Func("client-uids", "`users` that may connect to a Unix socket, beside this one", numbers(&cfg.Unix.ClientUIDs))
	grace := flags.Duration("grace", 20*time.Second, "how long calls may take to end after SIGTERM")
	if err := flags.Parse(args); err != nil {
		return err
	}
	mux := plugwire.NewMux()
	mux.HandleFunc("greet", func(_ context.Context, name []byte) ([]byte, error) {
		host, _ := os.Hostname()
		return fmt.Appendf(nil, "hello, %s, from %s", name, host), nil
	})
	server := &plugwire.Server{Mux: mux, Config: cfg}
	plugwirehttp.Publish("service", server)
	serveHTTP(*web, plugwirehttp.Health())
	served := make(chan error, 1)
	go func() { served <- server.ListenAndServe(*listen) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	// Clients are told to call somewhere else, and calls that run end.
	end, cancel := context.WithTimeout(context.Background(), *grace)
	defer cancel()
	return server.Shutdown(end)
}

func call(ctx context.Context, flags *flag.FlagSet, args []string, cfg *plugwire.Config, web *string) error {
	var addrs []string
	flags.Func("dial", "`addresses` of the servers", func(s string) error { addrs = strings.Split(s, ","); return nil })
	flags.Func("dns", "`host:port`, whose A and AAAA records are the servers", func(s string) error {
		cfg.Pool.Resolver = resolver.DNS(s, nil)
		return nil
	})
	flags.Func("srv", "`name`, whose SRV records are the servers", func(s string) error {
		cfg.Pool.Resolver = resolver.SRV(s, nil)
		return nil
	})
	flags.Func("file", "`path` of a file that has a server's address in each line", func(s string) error {
		cfg.Pool.Resolver = resolver.File(s, nil)
		return nil
	})
	flags.Func("server-uids", "`users` as whom a server on a Unix socket may run, beside this one", numbers(&cfg.Unix.ServerUIDs))
	every := flags.Duration("every", time.Second, "time from call to call")
	count := flags.Int("count", 0, "how many calls; 0: until SIGTERM")
	if err := flags.Parse(args); err != nil {
		return err
	}
	pool := plugwire.NewPool(cfg, addrs...)
	defer pool.Close()
	plugwirehttp.Publish("service", pool)
	serveHTTP(*web, plugwirehttp.Health(plugwirehttp.Call(pool, "greet")))
	for n := 1; ; n++ {
		reply, err := pool.Call(ctx, "greet", fmt.Appendf(nil, "number %d", n))
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && *count > 0:
			return err
		case err != nil:
			cfg.Logger.Error("call failed", "err", err)
		default:
			fmt.Println(string(reply))
		}
		if n == *count {
			return nil
		}
		select {
		case <-time.After(*every):
		case <-ctx.Done():
			return nil
		}
	}
}

// serveHTTP serves /healthz beside what expvar has registered. It is no reason to
// end when it cannot: probes will tell.
func serveHTTP(addr string, health http.Handler) {
	if addr == "" {
		return
	}
	http.Handle("/healthz", health)
	go func() { slog.Error("http", "err", http.ListenAndServe(addr, nil)) }()
}
