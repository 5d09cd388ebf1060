//go:build !windows

package plugwire

import "testing"

func TestNamedPipesAreRefusedByName(t *testing.T) {
	const addr = "npipe:////./pipe/x"
	_, err := new(Server).Listen(addr)
	wantError(t, err, Unimplemented, "listen", addr, "no named pipes", `use "unix:"`)
	_, err = Dial(t.Context(), addr, nil)
	wantError(t, err, Unimplemented, "dial", addr, "no named pipes", `use "unix:"`)
}
