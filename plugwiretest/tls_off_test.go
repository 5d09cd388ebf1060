//go:build plugwire_notls

package plugwiretest_test

import (
	"testing"

	"github.com/plugwire/plugwire"
)

func testTLS(*testing.T) func(*plugwire.Config) { return nil }
