package main

import (
	"errors"
	"os"
	"runtime"
	"strings"
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

func TestFarAway(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the stand-in is a shell")
	}
	where, err := host(t.Context(), nil)
	if err != nil || !strings.HasSuffix(where, "with 0 environment variables") {
		t.Fatalf("%q, %v", where, err)
	}
}
