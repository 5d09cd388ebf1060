package plugwire

import (
	"io/fs"
	"log/slog"
	"time"
)

// Config holds every setting. A nil *Config is the zero one, whose fields all
// mean their defaults; booleans name the unusual case; a negative size or
// duration means none. A Config is read when it is passed to a function of this
// package and must not change afterwards. It never reads the environment.
type Config struct {
	Logger *slog.Logger // nil: silent
	Mux    *Mux         // what a dialling side serves to the other (callbacks); nil: nothing
	OnConn func(*Conn)  // called for each connection that a Server accepts, after the handshake, before its first call; must not wait for calls of its own

	// Transports are the schemes that may be used, in order of preference
	// ("unix", "tcp", or one of Custom). Nil: what the platform offers, best first.
	Transports []string
	Custom     map[string]Transport // further transports, by scheme

	HandshakeTimeout time.Duration // the whole handshake; default 10 s
	DialTimeout      time.Duration // connecting, before the handshake; default 10 s
	WriteTimeout     time.Duration // a peer that takes nothing for so long is given up; default 30 s
	CloseTimeout     time.Duration // flushing and the farewell in Close; default 5 s

	// KeepAlive is how long the other side may be silent before it is asked for a
	// sign of life; after a third of that more without any, the connection is
	// closed. Default: 30 s over TCP and for launched plugins, else none.
	KeepAlive time.Duration

	// Versions are the versions of the application's own protocol that this
	// side speaks. The highest that both sides have is used (Conn.Version);
	// none in common fails the handshake. Empty: not negotiated.
	Versions []int

	// Authorize decides who may connect, and to whom a dialler talks, from what
	// the kernel says of the peer. Nil: on Unix sockets only the same user (a
	// platform that cannot tell refuses), elsewhere everyone who can connect.
	// Set, it decides alone: a dialler then does not ask who owns a Unix socket's
	// files.
	Authorize func(*Peer) error

	Limits Limits
	Unix   UnixConfig
	TCP    TCPConfig
	Launch LaunchConfig
}

// Limits bound what the other side can make this side hold. Those of messages
// and calls are announced in the handshake, and the other side waits or fails
// its caller rather than exceed them; one that exceeds them is disconnected.
type Limits struct {
	MaxConns        int // connections of a Server; default 4096
	MaxHandshakes   int // of them, connections still in the handshake; default 256
	MaxCalls        int // calls that the other side may have in flight on one connection; default 16384
	MaxMessage      int // bytes of one request, reply or one-way message; default 64 MiB
	MaxFrame        int // bytes of one frame's payload; default and most 64 KiB, least 4 KiB
	MaxRequestBytes int // bytes of all requests in flight on one connection, and as many again of stream messages larger than StreamWindow; default 128 MiB, least MaxMessage
	OneWayWindow    int // bytes, plus 64 for each, of one-way messages not yet handled; default 4 MiB
	StreamWindow    int // bytes, plus 64 for each, of one stream's messages not yet received; default 1 MiB
}

// UnixConfig holds the settings of Unix sockets.
type UnixConfig struct {
	Dir        string      // where automatic sockets get their private directory; default os.TempDir()
	Mode       fs.FileMode // of a listening socket; default 0600
	BufferSize int         // SO_SNDBUF and SO_RCVBUF, bytes; default the system's
	Group      int         // group of a listening socket, which Mode 0660 lets in together with ClientGIDs; 0: this process's own
	ServerUIDs []int       // further users as whom a server may run that is dialled (0 for a socket of systemd); this process's own always may
}

// TCPConfig holds the settings of TCP.
type TCPConfig struct {
	Insecure   bool          // allow plaintext beyond loopback, to whoever can connect
	Delay      bool          // let the kernel delay small segments (Nagle); default TCP_NODELAY
	BufferSize int           // SO_SNDBUF and SO_RCVBUF, bytes; default the system's
	KeepAlive  time.Duration // interval of TCP keep-alive probes; default 15 s
}

// LaunchConfig holds the settings of plugin processes. Those that both sides
// need (MagicCookie) must be the same on both.
type LaunchConfig struct {
	// StartTimeout is how long the host waits for the launch line, and then the
	// plugin for the host to connect; default 10 s.
	StartTimeout time.Duration
	// ExitTimeout is how long a process has to exit when its connection has ended.
	// After half of it it gets SIGTERM, after the whole it is killed; default 5 s.
	ExitTimeout time.Duration

	// MagicCookie is what a plugin expects of its host, so that a plugin that
	// belongs to another program says so. It is not a secret. Default "plugwire".
	MagicCookie string
}

// Defaults and bounds of Config's numbers.
const (
	defaultHandshakeTimeout = 10 * time.Second
	defaultDialTimeout      = 10 * time.Second
	defaultWriteTimeout     = 30 * time.Second
	defaultCloseTimeout     = 5 * time.Second
	defaultStartTimeout     = 10 * time.Second
	defaultExitTimeout      = 5 * time.Second
	defaultTCPKeepAlive     = 15 * time.Second
	defaultMagicCookie      = "plugwire"

	defaultMaxConns      = 4096
	defaultMaxHandshakes = 256
	defaultMaxCalls      = 16384
	defaultMaxMessage    = 64 << 20
	defaultRequestBytes  = 128 << 20
	defaultOneWayWindow  = 4 << 20
	maxFrame             = 64 << 10
	minFrame             = 4 << 10
	defaultStreamWindow  = 1 << 20
	minWindow            = 4 << 10
	maxCallsBound        = 1 << 20

	// noTimeout stands for "none", long enough to never pass.
	noTimeout = 100 * 365 * 24 * time.Hour
)

// withDefaults returns a copy of c, or of the zero Config when c is nil, in
// which every number is the one to use.
func (c *Config) withDefaults() *Config {
	var d Config
	if c != nil {
		d = *c
	}
	duration := func(p *time.Duration, def time.Duration) {
		switch {
		case *p == 0:
			*p = def
		case *p < 0:
			*p = noTimeout
		}
	}
	duration(&d.HandshakeTimeout, defaultHandshakeTimeout)
	duration(&d.DialTimeout, defaultDialTimeout)
	duration(&d.WriteTimeout, defaultWriteTimeout)
	duration(&d.CloseTimeout, defaultCloseTimeout)
	duration(&d.Launch.StartTimeout, defaultStartTimeout)
	duration(&d.Launch.ExitTimeout, defaultExitTimeout)
	if d.TCP.KeepAlive == 0 {
		d.TCP.KeepAlive = defaultTCPKeepAlive
	}
	size := func(p *int, def, least, most int) {
		switch {
		case *p == 0:
			*p = def
		case *p < 0:
			*p = most
		}
		*p = min(max(*p, least), most)
	}
	l := &d.Limits
	size(&l.MaxConns, defaultMaxConns, 1, maxWireLen)
	size(&l.MaxHandshakes, defaultMaxHandshakes, 1, maxWireLen)
	size(&l.MaxCalls, defaultMaxCalls, 1, maxCallsBound)
	size(&l.MaxMessage, defaultMaxMessage, minFrame, maxWireLen)
	size(&l.MaxFrame, maxFrame, minFrame, maxFrame)
	size(&l.MaxRequestBytes, max(defaultRequestBytes, l.MaxMessage), l.MaxMessage, maxWireLen)
	size(&l.OneWayWindow, defaultOneWayWindow, minWindow, maxWireLen)
	size(&l.StreamWindow, defaultStreamWindow, minWindow, maxWireLen)
	if d.Unix.Mode == 0 {
		d.Unix.Mode = 0o600
	}
	if d.Launch.MagicCookie == "" {
		d.Launch.MagicCookie = defaultMagicCookie
	}
	return &d
}
