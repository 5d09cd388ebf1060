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
	// Output:
	// a plugin that speaks [1]: version 1, area of [3] is 9
	// a plugin that speaks [1,2]: version 2, area of [3, 4] is 12
	// a plugin that speaks [3] is refused
}
