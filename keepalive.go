package plugwire

import (
	"errors"
	"fmt"
	"net"
	"time"
)

// Keepalive: a side that has heard nothing for Config.KeepAlive sends a PING, and
// gives the connection up when nothing comes for a third of that time more. Any
// traffic counts as life, and nobody looks at a clock for it: a timer looks now
// and then whether the count of bytes has changed.
const (
	defaultKeepAlive = 30 * time.Second // over TCP, and for launched plugins
	keepAliveLooks   = 12               // in that time
)

// keepAliveOf returns the idle time for a connection, 0 for none.
func keepAliveOf(nc net.Conn, cfg *Config) time.Duration {
	switch {
	case cfg.KeepAlive < 0:
		return 0
	case cfg.KeepAlive == 0 && nc.LocalAddr().Network() == "tcp":
		return defaultKeepAlive
	}
	return cfg.KeepAlive
}

var errSilent = errors.New("no sign of life")

// keepAlive watches a connection. Its timer runs one look at a time.
type keepAlive struct {
	c     *Conn
	idle  time.Duration
	bytes uint64 // read at the last look
	quiet int    // looks since then that found nothing more
}

func (c *Conn) startKeepAlive() {
	idle := keepAliveOf(c.nc, c.cfg)
	if idle == 0 {
		return
	}
	k := &keepAlive{c: c, idle: idle}
	c.out.Lock() // look wants it, and so finds the timer there
	defer c.out.Unlock()
	if !c.life.over {
		c.alive = time.AfterFunc(idle/keepAliveLooks, k.look)
	}
}

func (k *keepAlive) look() {
	c := k.c
	if c.ended.Load() {
		return
	}
	if bytes := c.readBytes.Load(); bytes != k.bytes {
		k.bytes, k.quiet = bytes, 0
	} else {
		k.quiet++
	}
	if k.quiet >= keepAliveLooks+keepAliveLooks/3 {
		c.fail(&Error{Code: Unavailable, Op: "close", Err: errSilent, Hint: fmt.Sprintf("for %v; Config.KeepAlive sets the time", k.idle+k.idle/3)})
		return
	}
	c.out.Lock()
	if c.life.over {
		c.out.Unlock()
		return
	}
	ping := k.quiet == keepAliveLooks
	if ping {
		c.pingLast++
		c.pingSend = true
		c.out.Signal()
	}
	c.alive.Reset(k.idle / keepAliveLooks)
	c.out.Unlock()
	if ping {
		c.out.Flush()
		c.ensureReader()
	}
}
