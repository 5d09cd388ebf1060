package plugwiretest

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"

	"github.com/plugwire/plugwire"
)

// InProcess is a plugin in the process of its host. It has those methods of a
// plugwire.Plugin that mean something without a process.
type InProcess struct {
	caller
	conn, plugin *plugwire.Conn
	below        net.Conn // the plugin's end
}

// caller makes the calls; the alias keeps the embedded field out of sight.
type caller = plugwire.Caller

// Plugin returns a plugin that serves mux in this process, as a program that calls
// ServePlugin(mux, cfg) and one that calls Launch with cfg would have it: cfg.Mux
// is what the host serves. No process is started and nothing of cfg.Launch
// counts; the connection is a real one (see NetPair). Without cfg.KeepAlive the
// ends do not look after each other, so that a debugger may stop the process for
// as long as it likes. The plugin ends with the test.
func Plugin(t testing.TB, mux *plugwire.Mux, cfg *plugwire.Config) *InProcess {
	t.Helper()
	var host plugwire.Config
	if cfg != nil {
		host = *cfg
	}
	if host.KeepAlive == 0 {
		host.KeepAlive = -1
	}
	host.OnConn = nil // is of connections that are accepted
	serving := host
	serving.Mux = mux
	dialled, accepted := NetPair(t)
	x, y := PairOver(t, dialled, accepted, &host, &serving)
	return &InProcess{caller: x, conn: x, plugin: y, below: accepted}
}

// Conn returns the host's end of the connection.
func (p *InProcess) Conn() *plugwire.Conn { return p.conn }

// Pid returns the id of this process.
func (p *InProcess) Pid() int { return os.Getpid() }

// Stats returns the counters of the host's end.
func (p *InProcess) Stats() plugwire.Stats { return p.conn.Stats() }

// Kill ends the plugin as its process's sudden death would: calls in flight fail
// as they would then, and the contexts of its handlers end. It waits until both
// ends have noticed, but not for handlers.
func (p *InProcess) Kill() {
	p.below.Close()
	<-p.conn.Done()
	<-p.plugin.Done()
}

// Wait waits until the plugin has ended. It returns nil when that was in order,
// and else what the host's end of the connection noticed.
func (p *InProcess) Wait() error {
	<-p.conn.Done()
	<-p.plugin.Done()
	if err := p.conn.Err(); !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// Shutdown ends the plugin when the calls in flight have ended, as
// plugwire.Plugin.Shutdown does.
func (p *InProcess) Shutdown(ctx context.Context) error {
	if err := p.conn.Shutdown(ctx); err != nil {
		return err
	}
	return p.Wait()
}

// Close ends the plugin: what was accepted is sent, and pending calls end with an
// error. It returns, as Wait does, how the plugin ended.
func (p *InProcess) Close() error {
	if err := p.conn.Close(); err != nil {
		return err
	}
	return p.Wait()
}
