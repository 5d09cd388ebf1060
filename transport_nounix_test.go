//go:build !unix

package plugwire

import (
	"errors"
	"testing"
)

func TestUnixSocketsAreRefusedByName(t *testing.T) {
	cfg := new(Config).withDefaults()
	_, err1 := unixTransport{}.Listen(t.Context(), "unix:", cfg)
	_, err2 := unixTransport{}.Dial(t.Context(), "unix:///x", cfg)
	for _, err := range []error{err1, err2} {
		var e *Error
		if !errors.As(err, &e) || e.Code != Unimplemented || e.Hint == "" {
			t.Errorf("got %v; want an *Error, Unimplemented, with a hint", err)
		}
	}
}
