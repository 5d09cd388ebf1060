package main

import (
	"errors"
	"os"
	"testing"

	"github.com/plugwire/plugwire"
)

// TestMain lets the test binary be the plugin that the example launches.
func TestMain(m *testing.M) {
	if err := plugin(); !errors.Is(err, plugwire.ErrNotPlugin) {
		return
	}
	os.Exit(m.Run())
}

func Example() {
	main()
	// Unordered output:
	// level=INFO msg="plugwire: plugin starting"
	// level=INFO msg="plugwire: plugin ready"
	// level=DEBUG msg=fetching url=http://localhost/
	// level=WARN msg=slow took.dns=1.2s took.all=3.4s
	// level=INFO msg="left from debugging: \\x1b[31mhere\\x1b[0m"
	// level=INFO msg="plugwire: plugin exited"
}
