//go:build js || wasip1 || plan9

package plugwire

import (
	"os/exec"
	"testing"
)

func TestLaunchIsNotSupportedHere(t *testing.T) {
	_, err := Launch(t.Context(), exec.Command("/greeter"), nil)
	wantCode(t, err, Unimplemented, false)
}
