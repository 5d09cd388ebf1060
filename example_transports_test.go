package plugwire_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/exec"

	"github.com/plugwire/plugwire"
)

// In development the defaults do, and the log tells what was chosen and why.
func ExampleConfig_development() {
	cfg := &plugwire.Config{
		Logger:       slog.New(slog.NewTextHandler(os.Stderr, nil)),
		LogTransport: true,
	}
	p, err := plugwire.Launch(context.Background(), exec.Command("./greeter"), cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer p.Close()
	fmt.Print(p.Selection())
}

// In production a connection that lacks what is needed is an error, also where
// somebody has left out the certificates.
func ExampleConfig_production() {
	cfg := &plugwire.Config{
		Need: plugwire.Need{Remote: true, Encrypted: true, VerifiedPeer: true},
		TLS: plugwire.TLSConfig{
			CertFile: os.Getenv("CERT"), KeyFile: os.Getenv("KEY"), CAFile: os.Getenv("CA"),
		},
	}
	_, err := plugwire.Dial(context.Background(), "tcp://127.0.0.1:7000", cfg)
	fmt.Println(plugwire.CodeOf(err), err)
	// Output: PermissionDenied plugwire: dial tcp://127.0.0.1:7000: Config.Need.Encrypted: it is not encrypted (use another address, or set Config.TLS: that is encrypted, and verifies the peer)
}

// A list is an order: here a Unix socket, and TCP where that cannot be had.
func ExampleConfig_fallback() {
	cfg := &plugwire.Config{Transports: []string{"unix", "tcp"}}
	p, err := plugwire.Launch(context.Background(), exec.Command("./greeter"), cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer p.Close()
	fmt.Println(p.Selection().Chosen)
}
