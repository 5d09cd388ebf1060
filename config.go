package plugwire

import (
	"io/fs"
	"log/slog"
	"math"
	"os"
	"time"
)

// Config holds every setting. A nil *Config is the zero one, whose fields all
// mean their defaults; booleans name the unusual case; a negative size or
// duration means none. A Config is read when it is passed to a function of this
// package and must not change afterwards. Only ConfigFromEnv reads the environment.
type Config struct {
	Logger *slog.Logger // nil: silent
	// LogTransport has the Logger also told, at Info, how a plugin's transport was
	// chosen (Plugin.Selection), and each bind, dial and handshake.
	LogTransport bool

	Mux    *Mux        // what a dialling side serves to the other (callbacks); nil: nothing
	OnConn func(*Conn) // called for each connection that a Server accepts, after the handshake, before its first call; must not wait for calls of its own

	// Transports are the schemes that may be used, in order of preference
	// ("unix", "npipe", "tcp", or one of Custom). Nil: what the platform offers, by
	// the scores of docs/TRANSPORTS.md.
	// Launch has two more, with which nothing listens and which have to be asked for:
	// "socketpair" (Unix), of which the plugin inherits one end, and "stdio", the
	// plugin's stdin and stdout, for a command that runs it elsewhere ("ssh HOST
	// PLUGIN", "docker exec -i ..."). "stdio" must be the only one.
	Transports []string
	Custom     map[string]Transport // further transports, by scheme
	Need       Need                 // what every connection must have; default nothing

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

	// Authorize decides alone who may connect, and to whom a dialler talks, from
	// what the kernel says of the peer: where it is set, the lists of users and
	// groups in Unix and NPipe are not looked at, and neither are the owners of a
	// socket's files. Nil: on Unix sockets and named pipes the same user and those
	// lists (a platform that cannot tell refuses), elsewhere everyone who can
	// connect. It may be called by several goroutines at once, and its error is
	// told to the other side.
	Authorize func(*Peer) error

	// Metrics has calls and streams counted by method and code, and timed: see
	// Stats.Methods. The other counters of Stats are always there.
	Metrics bool

	Limits Limits
	Unix   UnixConfig
	NPipe  NPipeConfig
	TCP    TCPConfig
	TLS    TLSConfig
	Pool   PoolConfig
	Launch LaunchConfig

	// EnvWarnings is what ConfigFromEnv has to say that is no error: a sentence for
	// each variable with its prefix that is no setting. Nothing reads it.
	EnvWarnings []string

	env     *envRoles         // what ConfigFromEnv found for one role alone
	order   string            // what has set Transports, for Selection; "": the program
	secret  *secret           // of a launch, which both sides prove to know; nil: none
	vouch   func(*Peer) error // of a launch: whether the peer can be the other side; nil: not asked
	budget  *budget           // of a Server, whose copy this is
	rate    *rateLimit        // of Limits.MaxRate, made by withDefaults
	metrics *meter            // of a Server, Pool or Plugin, whose copy this is
}

// Limits bound what the other side can make this side hold. Those of messages
// and calls are announced in the handshake, and the other side waits or fails
// its caller rather than exceed them; one that exceeds them is disconnected.
type Limits struct {
	MaxConns        int // connections of a Server; default 4096
	MaxHandshakes   int // of them, connections still in the handshake, of which the oldest is ended to make room; default 256
	MaxCalls        int // calls that the other side may have in flight on one connection; default 16384
	MaxMessage      int // bytes of one request, reply or one-way message; default 64 MiB
	MaxFrame        int // bytes of one frame's payload; default and most 64 KiB, least 4 KiB
	MaxRequestBytes int // bytes of all requests in flight on one connection, and as many again of stream messages larger than StreamWindow; default 128 MiB, or twice MaxMessage if more, least MaxMessage, but then the largest requests, and all behind them, wait until no call or stream is in flight
	MaxServerBytes  int // bytes that all connections of a Server hold of requests above 4 KiB, one-way messages of several frames, and stream messages larger than StreamWindow: beyond it a request is refused unrun with ResourceExhausted, and the others end their connection; default 1 GiB, or MaxRequestBytes if more, least MaxMessage
	OneWayWindow    int // bytes, plus 64 for each, of one-way messages not yet handled; default 4 MiB
	StreamWindow    int // bytes, plus 64 for each, of one stream's messages not yet received; default 1 MiB

	// MaxRate is how many calls and one-way messages may begin per second, over all
	// connections of a Server or Pool together, after a pause up to MaxBurst at once
	// (default: what comes in a second). A call for which nothing is left is refused
	// unrun with ResourceExhausted, a one-way message waits for its turn. Streams are
	// not counted. Default: no limit. Package middleware has limits for single methods.
	MaxRate  float64
	MaxBurst int
}

// UnixConfig holds the settings of Unix sockets.
type UnixConfig struct {
	Path       string      // where "unix:" listens, and so a plugin does; default: a random name in a private directory
	Dir        string      // where automatic sockets get their private directory; default os.TempDir()
	Mode       fs.FileMode // of a listening socket; default 0600
	BufferSize int         // SO_SNDBUF and SO_RCVBUF, bytes; default the system's
	Group      int         // group of a listening socket, which Mode 0660 lets in together with ClientGIDs; 0: this process's own

	ClientUIDs []int // further users that may connect to a server; its own always may
	ClientGIDs []int // groups whose users may connect: the peer's effective group is one of them
	ServerUIDs []int // further users as whom a server may run that is dialled (0 for a socket of systemd); this process's own always may
}

// NPipeConfig holds the settings of named pipes of Windows. Its SIDs are written
// "S-1-5-...".
type NPipeConfig struct {
	BufferSize int // bytes of each direction's buffer; default 64 KiB

	ClientSIDs []string // further users that may connect to a server; its own always may. With Authorize, which then decides, also groups
	ServerSIDs []string // further users as whom a server may run that is dialled ("S-1-5-18" for a service of the system); this process's own always may
}

// TCPConfig holds the settings of TCP.
type TCPConfig struct {
	Insecure   bool          // allow plaintext beyond loopback, to whoever can connect; else also Serve and NewConn refuse
	Delay      bool          // let the kernel delay small segments (Nagle); default TCP_NODELAY
	BufferSize int           // SO_SNDBUF and SO_RCVBUF, bytes; default the system's
	KeepAlive  time.Duration // interval of TCP keep-alive probes; default 15 s

	// Host and Port are where "tcp:" listens, and so a plugin does. Default: a free
	// port of 127.0.0.1, or, where MinPort or MaxPort is set, one of that range.
	// Addresses that name a host or port mean just those. LowPorts allows Port and
	// MinPort to be below 1024, where services of the system are.
	Host             string
	Port             int
	MinPort, MaxPort int
	LowPorts         bool
}

// TLSConfig turns on mutual TLS 1.3, over any transport, when any of it is set.
// Each side then has a certificate of its own (CertFile and KeyFile, or
// SetCertificate or SetCertificateFunc) and says whose it accepts: those signed
// by CAFile's authorities (or SetRoots's) that have one of Names, or an ID in
// TrustDomain. Files are looked at again at each handshake: connections that
// exist stay, the next ones use what a changed file has. A changed file that
// cannot be used, say a half-written one or a key that belongs to another
// certificate, changes nothing and is counted (Stats.CertErrors).
type TLSConfig struct {
	CertFile, KeyFile string // PEM of this side's certificate, with those between it and the authority behind it, and of its key; may be one file
	CAFile            string // PEM of the authorities that sign the other side's certificates; several while they are exchanged

	// Names are DNS names and IP addresses of which the other side's certificate
	// must have one. Nil: a dialler wants the host of the address that it dials, a
	// server any certificate that the authorities have signed.
	Names []string

	// TrustDomain says that the other side must have a SPIFFE X.509-SVID with an
	// ID in this trust domain, such as "example.org"; then CAFile has the domain's
	// trust bundle, and Names are not allowed. See
	// https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md.
	TrustDomain string
	// AuthorizeID decides which IDs of TrustDomain are accepted; nil: all. The
	// other side has not yet shown that it has the certificate's key, so a nil
	// error must have no other effect.
	AuthorizeID func(id string) error

	// These have types of crypto/tls and crypto/x509, which only files without the
	// tag plugwire_notls may name.
	cert  any    // func() (*tls.Certificate, error): this side's certificate
	roots any    // func() (*x509.CertPool, error): the authorities
	pin   string // keyPin of the only key that the other side may have
}

// LaunchConfig holds the settings of plugin processes. Those that both sides
// need (MagicCookie) must be the same on both.
type LaunchConfig struct {
	// StartTimeout is how long the host waits for the launch line, and then the
	// plugin for the host to connect; default 10 s.
	StartTimeout time.Duration
	// ExitTimeout is how long a process has to exit when its connection has ended;
	// then it is killed, with its process group (on Windows, its job); default 5 s.
	ExitTimeout time.Duration
	// TermTimeout is how much of that passes before it gets SIGTERM, on Windows
	// Ctrl-Break, which only a host with a console can send; default half,
	// negative: none, and it gets that at once.
	TermTimeout time.Duration
	// WaitDelay is how long the end of a plugin's stdout and stderr is then waited
	// for: its process is gone, but one that it has started, and that was not in
	// its group, may hold them open; default 500 ms, negative: as long as that does.
	WaitDelay time.Duration
	// ForwardSignals are signals that this process passes on to the plugin and its
	// process group, such as os.Interrupt, which a terminal otherwise sends to the
	// host alone: the plugin runs in a group of its own. As with signal.Notify, they
	// then no longer end this process by themselves. On Windows each arrives as Ctrl-Break.
	ForwardSignals []os.Signal

	// AutoMTLS has a plugin's connection encrypted over Unix sockets, named pipes,
	// socketpairs and stdio too. By default it is over all other transports: host and plugin make a key each for
	// the launch, and accept no other than the other's. NoAutoMTLS has it in plain
	// over those too; who is there is still proven with a one-time secret. Neither
	// counts where TLS is set: then that is used.
	AutoMTLS, NoAutoMTLS bool

	// Detach is how long a plugin lives on whose host is gone without having ended
	// it: so long another may Reattach. It then has no more who reads what it prints.
	// Default: it ends with its host, and that within a second.
	Detach time.Duration

	// SecretInEnv has the one-time secret, which host and plugin prove to each
	// other, travel in the environment rather than on the plugin's stdin: for a
	// plugin behind a wrapper that does not pass its stdin on. Whoever may read
	// the plugin's environment then knows the secret.
	SecretInEnv bool

	// StartRetries is how often a start that failed is tried again, with pauses
	// like those before restarts; default 0.
	StartRetries int

	// Restart says when a plugin that ended is started again; default never. The
	// first restart comes after RestartDelay (default 100 ms), and each further one
	// within RestartWindow (1 min) after twice as long, up to RestartDelayMax
	// (10 s). When MaxRestarts (10) were not enough within it, the plugin is given
	// up. Calls wait for a process for at most RestartWait (10 s).
	Restart                                                   RestartPolicy
	RestartDelay, RestartDelayMax, RestartWindow, RestartWait time.Duration
	MaxRestarts                                               int

	// HealthMethod is a method of the plugin that is called, with an empty request,
	// every HealthInterval (default 10 s), and must answer within it. When it fails
	// HealthThreshold times (3) in a row, the plugin is unhealthy: its connection
	// and then its process are ended. Default "": only KeepAlive looks after it.
	HealthMethod    string
	HealthInterval  time.Duration
	HealthThreshold int

	// OnEvent is told what happens to the plugin, one event after the other, by
	// whichever goroutine notices it. It must return soon, and not wait for the
	// Plugin's end. Events also go to Logger.
	OnEvent func(Event)

	// LogLevel is the level of records made of what a plugin prints that is no
	// record itself: Config.Logger gets each line of its stdout and stderr, with
	// the plugin's name and pid. Lines of slog's and hclog's JSON come with their own time,
	// level, message and fields, lines from the headline of a Go panic on as
	// errors, the others at this level. Of a line, 64 KiB are taken. A Logger that
	// is slower than the plugin prints slows it down, but by no more than 100 ms for
	// every 256 KiB: what it then has no room for is dropped, and the log says how
	// many lines those were. Default Info.
	LogLevel slog.Level

	// InheritEnv are the names of the variables of this process's environment that
	// a plugin gets whose command has no Env of its own. Nil: all; empty: none.
	InheritEnv []string

	// SHA256 is the sum that the plugin's program must have, in hexadecimal
	// digits; else it is not run. On Linux the file that was read is the one that
	// runs, whatever is at its path by then (it runs as /proc/self/fd/N, after
	// which the system names the process, and inherits that descriptor);
	// elsewhere somebody who may write to its directory can exchange it in between.
	// Nowhere does it help against who may write to the file itself, or exchange
	// what it loads: other files, an interpreter. "": not checked.
	SHA256 string

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
	defaultWaitDelay        = 500 * time.Millisecond
	defaultTCPKeepAlive     = 15 * time.Second
	defaultRestartDelay     = 100 * time.Millisecond
	defaultRestartDelayMax  = 10 * time.Second
	defaultRestartWindow    = time.Minute
	defaultRestartWait      = 10 * time.Second
	defaultHealthInterval   = 10 * time.Second
	defaultMaxRestarts      = 10
	defaultHealthThreshold  = 3
	defaultMagicCookie      = "plugwire"
	defaultPipeBuffer       = 64 << 10

	defaultMaxConns      = 4096
	defaultMaxHandshakes = 256
	defaultMaxCalls      = 16384
	defaultMaxMessage    = 64 << 20
	defaultRequestBytes  = 128 << 20
	defaultServerBytes   = 1 << 30 // what eight connections with all that they may send hold
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
	duration(&d.Launch.WaitDelay, defaultWaitDelay)
	duration(&d.Launch.RestartDelay, defaultRestartDelay)
	duration(&d.Launch.RestartDelayMax, defaultRestartDelayMax)
	duration(&d.Launch.RestartWindow, defaultRestartWindow)
	duration(&d.Launch.RestartWait, defaultRestartWait)
	duration(&d.Launch.HealthInterval, defaultHealthInterval)
	if d.Launch.TermTimeout == 0 {
		d.Launch.TermTimeout = d.Launch.ExitTimeout / 2
	}
	d.Launch.TermTimeout = min(max(d.Launch.TermTimeout, 1), d.Launch.ExitTimeout)
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
	two := l.MaxMessage + min(l.MaxMessage, maxWireLen-l.MaxMessage) // so that the largest need not wait for streams to end
	size(&l.MaxRequestBytes, max(defaultRequestBytes, two), l.MaxMessage, maxWireLen)
	if l.MaxServerBytes < 0 {
		l.MaxServerBytes = math.MaxInt
	} else if l.MaxServerBytes == 0 {
		l.MaxServerBytes = max(defaultServerBytes, l.MaxRequestBytes)
	}
	l.MaxServerBytes = max(l.MaxServerBytes, l.MaxMessage)
	size(&l.OneWayWindow, defaultOneWayWindow, minWindow, maxWireLen)
	size(&l.StreamWindow, defaultStreamWindow, minWindow, maxWireLen)
	if d.rate == nil {
		d.rate = newRateLimit(l)
	}
	size(&d.Launch.MaxRestarts, defaultMaxRestarts, 0, maxWireLen)
	size(&d.Launch.HealthThreshold, defaultHealthThreshold, 1, maxWireLen)
	if d.Unix.Mode == 0 {
		d.Unix.Mode = 0o600
	}
	d.Pool.setDefaults(duration)
	size(&d.NPipe.BufferSize, defaultPipeBuffer, minFrame, maxWireLen)
	if d.Launch.MagicCookie == "" {
		d.Launch.MagicCookie = defaultMagicCookie
	}
	return &d
}
