package bubble

import (
	"testing"
	"testing/synctest"
)

func TestInside(t *testing.T) {
	if Inside() {
		t.Error("outside")
	}
	synctest.Test(t, func(t *testing.T) {
		inside := make(chan bool)
		go func() { inside <- Inside() }()
		if !Inside() || !<-inside {
			t.Error("inside")
		}
	})
	if Inside() {
		t.Error("outside again")
	}
}
