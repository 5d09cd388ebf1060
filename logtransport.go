package plugwire

import (
	"context"
	"log/slog"
	"net"
	"time"
)

// What Config.LogTransport has the Logger told.

func (c *Config) logListen(addr string, l net.Listener, err error) {
	if err == nil && c.LogTransport {
		addr = addrURI(l.Addr())
	}
	c.logStep("listen", err, slog.String("addr", addr))
}

func (c *Config) logDial(addr string, err error, took time.Duration) {
	c.logStep("dial", err, slog.String("addr", addr), slog.Duration("took", took))
}

func (c *Config) logHandshake(addr string, conn *Conn, err error, took time.Duration) {
	attrs := []slog.Attr{slog.String("addr", addr), slog.Duration("took", took)}
	if err == nil {
		attrs = append(attrs, slog.String("peer", conn.peer.String()), slog.Bool("tls", c.hasTLS()))
	}
	c.logStep("handshake", err, attrs...)
}

// logStep logs that a step was done or, with an error, why not.
func (c *Config) logStep(step string, err error, attrs ...slog.Attr) {
	if !c.LogTransport || c.Logger == nil {
		return
	}
	message := "plugwire: " + step
	if err != nil {
		message += " failed"
		attrs = append(attrs, slog.Any("err", err))
	}
	c.Logger.LogAttrs(context.Background(), slog.LevelInfo, message, attrs...)
}
