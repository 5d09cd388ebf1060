// Versions has a host that speaks versions 1 and 2 of its application's protocol
// launch plugins that speak the first, both, or a third: the best common one is
// chosen, and where there is none, both sides say so.
//
//	go run ./examples/versions
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"

	"github.com/plugwire/plugwire"
)

func main() {
	log.SetFlags(0)
	err := plugin() // when a host has launched this program
	if errors.Is(err, plugwire.ErrNotPlugin) {
		err = host(context.Background())
	} else if err != nil {
		os.Exit(1) // the host has the reason
	}
	if err != nil {
		log.Fatal(err)
	}
}

// plugin serves "area" in the versions that PLUGIN_SPEAKS lists. In version 1 a request is
// the side of a square; in version 2 it has two sides.
func plugin() error {
	var cfg plugwire.Config
	if list := os.Getenv("PLUGIN_SPEAKS"); list != "" {
		if err := json.Unmarshal([]byte(list), &cfg.Versions); err != nil {
			return err
		}
	}
	mux := plugwire.NewMux()
	mux.HandleFunc("area", func(ctx context.Context, req []byte) ([]byte, error) {
		info, _ := plugwire.InfoFromContext(ctx)
		var sides []int
		if err := json.Unmarshal(req, &sides); err != nil {
			return nil, err
		}
		if info.Conn.Version() == 1 {
			sides = append(sides, sides[0])
		}
		return fmt.Append(nil, sides[0]*sides[1]), nil
	})
	return plugwire.ServePlugin(mux, &cfg)
}

// host launches this same program as three plugins.
func host(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, speaks := range []string{"[1]", "[1,2]", "[3]"} {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), "PLUGIN_SPEAKS="+speaks)
		p, err := plugwire.Launch(ctx, cmd, &plugwire.Config{Versions: []int{1, 2}})
		if plugwire.CodeOf(err) == plugwire.FailedPrecondition {
			fmt.Printf("a plugin that speaks %s is refused\n", speaks)
			continue
		}
		if err != nil {
			return err
		}
		request := "[3]"
		if p.Conn().Version() == 2 {
			request = "[3, 4]"
		}
		area, err := p.Call(ctx, "area", []byte(request))
		if err != nil {
			return errors.Join(err, p.Close())
		}
		fmt.Printf("a plugin that speaks %s: version %d, area of %s is %s\n", speaks, p.Conn().Version(), request, area)
		if err := p.Close(); err != nil {
			return err
		}
	}
	return nil
}
