package plugwire

import (
	"context"
	"errors"
	"sync"
)

// running has the plugins of this process that were launched and have not ended.
var running struct {
	sync.Mutex
	plugins map[*Plugin]bool
}

func (p *Plugin) register() {
	running.Lock()
	defer running.Unlock()
	if running.plugins == nil {
		running.plugins = make(map[*Plugin]bool)
	}
	running.plugins[p] = true
}

func (p *Plugin) unregister() {
	running.Lock()
	defer running.Unlock()
	delete(running.plugins, p)
}

// CloseAll ends every plugin that this process has launched, all at the same
// time, and returns when they are gone: for the end of a program. Each ends as
// by Plugin.Shutdown; when ctx ends first, those that are still draining are
// closed, as by Plugin.Close, and ctx's error is among those returned, beside
// those of Shutdown and Close. A Launch that has not returned yet is not
// affected, nor is a later one. It may be called again.
func CloseAll(ctx context.Context) error {
	running.Lock()
	plugins := make([]*Plugin, 0, len(running.plugins))
	for p := range running.plugins {
		plugins = append(plugins, p)
	}
	running.Unlock()
	errs := make([]error, len(plugins))
	var wg sync.WaitGroup
	for i, p := range plugins {
		wg.Go(func() {
			if errs[i] = p.Shutdown(ctx); ctx.Err() != nil {
				errs[i] = errors.Join(errs[i], p.Close())
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
