package plugwire

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestCloseAllEndsEveryPlugin(t *testing.T) {
	var plugins []*Plugin
	for range 3 {
		plugins = append(plugins, newLaunchTest(t, "good").launch())
	}
	plugins[0].Close() // one that has ended already is not in the way
	for range 2 {
		if err := CloseAll(t.Context()); err != nil {
			t.Error(err)
		}
	}
	for _, p := range plugins {
		if !p.cur.Load().proc.ended(0) || !closedWithin(p.done, 0) {
			t.Error("a plugin was left")
		}
	}
	if len(running.plugins) != 0 {
		t.Errorf("%d plugins are still known", len(running.plugins))
	}
}

func TestCloseAllClosesWhatDoesNotDrain(t *testing.T) {
	lt := newLaunchTest(t, "good")
	p, errs := lt.hang(2)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := CloseAll(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if !p.cur.Load().proc.ended(0) {
		t.Error("the plugin was left")
	}
	for range 2 {
		if err := <-errs; err == nil {
			t.Error("a call that hangs succeeded")
		}
	}
}
