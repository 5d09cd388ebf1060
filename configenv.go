package plugwire

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ConfigFromEnv returns the Config that environment variables describe, whose
// names are prefix, an underscore and a name of docs/CONFIG.md: with "PLUGIN" they
// are PLUGIN_TCP_PORT and so on. A field whose variable is not set, or is empty,
// has its zero value; fields without a variable always have it. The program may
// change what it gets: where it sets a field, the variable no longer counts.
//
// A value that is of no use is an error, which names the variable, the value and
// what would be right, for all of them at once; there is no Config then. Variables
// with the prefix that are no settings are none: Config.EnvWarnings has a sentence
// for each, and the Config is as good as without them. Other systems set variables
// of such names too (hashicorp/go-plugin sets PLUGIN_MIN_PORT and PLUGIN_CLIENT_CERT);
// a program that they start should use a prefix of its own.
//
// What SERVER_TRANSPORTS, SERVER_CERT, SERVER_KEY and CLIENT_ROOT_CERTS say counts
// where the Config serves (ServePlugin, Server), what CLIENT_TRANSPORTS,
// CLIENT_CERT, CLIENT_KEY and SERVER_ROOT_CERTS say where it dials (Launch, Dial,
// NewConn, Pool). They do not show in the Config's fields, so that a host and its
// plugin may share an environment.
//
// Nothing else in this package reads these variables: a nil Config does not.
func ConfigFromEnv(prefix string) (*Config, error) {
	if prefix == "" || strings.ContainsAny(prefix, "=\x00") {
		return nil, &Error{Code: InvalidArgument, Message: fmt.Sprintf("ConfigFromEnv: the prefix %q is none", prefix), Hint: `an example is "PLUGIN"`}
	}
	c := &Config{env: new(envRoles)}
	s := &envSettings{c: c, prefix: prefix + "_", roles: c.env}
	s.vars = envVars()
	for i := range s.vars {
		v := &s.vars[i]
		if value := os.Getenv(s.prefix + v.name); value != "" {
			if err := v.set(s, value); err != nil {
				s.reject(v, value, err)
			}
		}
	}
	s.check()
	if err := errors.Join(s.errs...); err != nil {
		return nil, err
	}
	s.warn(os.Environ())
	return c, nil
}

// envSettings collects what the variables say.
type envSettings struct {
	c      *Config
	prefix string // of the names, with the underscore
	vars   []envVar
	roles  *envRoles
	pem    [2][3]string // by role: cert, key, roots
	errs   []error
}

// An envVar is a variable that is a setting.
type envVar struct {
	name  string // without the prefix
	field string // of Config
	right string // what its values are
	set   func(s *envSettings, value string) error
}

var errBadValue = errors.New("bad value")

// envVars returns the settings, in the order of docs/CONFIG.md, which a test makes
// of them. As a variable they, and the JSON decoder, would be in every program.
func envVars() []envVar {
	return []envVar{
		{"SERVER_TRANSPORTS", "Transports", rightList, envTransports(asServer)},
		{"CLIENT_TRANSPORTS", "Transports", rightList, envTransports(asDialler)},

		{"UNIX_SOCKET_PATH", "Unix.Path", "an absolute path", envPath(func(c *Config) *string { return &c.Unix.Path })},
		{"UNIX_SOCKET_DIR", "Unix.Dir", "the absolute path of a directory", envPath(func(c *Config) *string { return &c.Unix.Dir })},
		{"UNIX_SOCKET_PERMISSIONS", "Unix.Mode", "octal digits, 1 to 777, as in 0660", envMode},
		{"UNIX_SOCKET_GROUP", "Unix.Group", "a group's number, at least 1 (getent group NAME shows it)", envInt(1, math.MaxInt32, func(c *Config) *int { return &c.Unix.Group })},
		{"UNIX_SOCKET_BUFFER_SIZE", "Unix.BufferSize", rightBytes, envInt(1, maxWireLen, func(c *Config) *int { return &c.Unix.BufferSize })},

		{"TCP_HOST", "TCP.Host", "a host name or IP address, without a port", envHost},
		{"TCP_PORT", "TCP.Port", "a port, 1024 to 65535 (others only with TCP.LowPorts), or 0 for a free one", envInt(0, mostPort, func(c *Config) *int { return &c.TCP.Port })},
		{"MIN_PORT", "TCP.MinPort", rightPort, envInt(1, mostPort, func(c *Config) *int { return &c.TCP.MinPort })},
		{"MAX_PORT", "TCP.MaxPort", rightPort, envInt(1, mostPort, func(c *Config) *int { return &c.TCP.MaxPort })},
		{"TCP_NODELAY", "TCP.Delay", rightBool + "; false sets the field", envBool(func(c *Config, yes bool) { c.TCP.Delay = !yes })},
		{"TCP_BUFFER_SIZE", "TCP.BufferSize", rightBytes, envInt(1, maxWireLen, func(c *Config) *int { return &c.TCP.BufferSize })},
		{"TCP_KEEPALIVE", "TCP.KeepAlive", rightTime, envDuration(func(c *Config) []*time.Duration { return []*time.Duration{&c.TCP.KeepAlive} })},

		{"AUTO_MTLS", "Launch.AutoMTLS", rightBool + "; false sets Launch.NoAutoMTLS", envBool(func(c *Config, yes bool) { c.Launch.AutoMTLS, c.Launch.NoAutoMTLS = yes, !yes })},
		{"SERVER_CERT", "TLS.CertFile", rightPEM, envPEM(asServer, pemCert)},
		{"SERVER_KEY", "TLS.KeyFile", rightPEM, envPEM(asServer, pemKey)},
		{"CLIENT_CERT", "TLS.CertFile", rightPEM, envPEM(asDialler, pemCert)},
		{"CLIENT_KEY", "TLS.KeyFile", rightPEM, envPEM(asDialler, pemKey)},
		{"CLIENT_ROOT_CERTS", "TLS.CAFile", rightPEM, envPEM(asServer, pemRoots)},
		{"SERVER_ROOT_CERTS", "TLS.CAFile", rightPEM, envPEM(asDialler, pemRoots)},

		{"HANDSHAKE_TIMEOUT", "HandshakeTimeout", rightTime, envDuration(func(c *Config) []*time.Duration { return []*time.Duration{&c.HandshakeTimeout} })},
		{"CONNECTION_TIMEOUT", "DialTimeout", rightTime, envDuration(func(c *Config) []*time.Duration { return []*time.Duration{&c.DialTimeout} })},
		{"CONNECTION_POOL_SIZE", "Pool.Size", rightCount, envInt(1, math.MaxInt32, func(c *Config) *int { return &c.Pool.Size })},
		{"MAX_MESSAGE_SIZE", "Limits.MaxMessage", "a number of bytes, 4096 to 2147483647", envInt(minFrame, maxWireLen, func(c *Config) *int { return &c.Limits.MaxMessage })},
		{"MAX_CONCURRENT_CALLS", "Limits.MaxCalls", "a number, 1 to 1048576", envInt(1, maxCallsBound, func(c *Config) *int { return &c.Limits.MaxCalls })},
		{"RATE_LIMIT_REQUESTS_PER_SECOND", "Limits.MaxRate", "a number greater than 0", envRate},
		{"RATE_LIMIT_BURST_CAPACITY", "Limits.MaxBurst", rightCount, envInt(1, math.MaxInt32, func(c *Config) *int { return &c.Limits.MaxBurst })},
		{"SHUTDOWN_GRACE", "CloseTimeout", rightTime + "; also sets Launch.ExitTimeout", envDuration(func(c *Config) []*time.Duration { return []*time.Duration{&c.CloseTimeout, &c.Launch.ExitTimeout} })},

		{"LOG_LEVEL", "Logger", "debug, info, warn or error: a slog.TextHandler on stderr with this level", envLogLevel},
		{"LOG_TRANSPORT_DETAILS", "LogTransport", rightBool + "; without a LOG_LEVEL, true also sets that to info", envBool(func(c *Config, yes bool) { c.LogTransport = yes })},
	}
}

const (
	rightList  = `schemes in order of preference, as in unix,tcp or ["unix","tcp"]`
	rightBytes = "a number of bytes, at least 1"
	rightCount = "a number, at least 1"
	rightPort  = "a port, 1024 to 65535 (others only with TCP.LowPorts)"
	rightBool  = "true or false"
	rightTime  = `a time as in 1m30s or 90 (seconds), or "none"`
	rightPEM   = "PEM, or file:// and the absolute path of a file that has it"
)

func envInt(least, most int, field func(*Config) *int) func(*envSettings, string) error {
	return func(s *envSettings, value string) error {
		n, err := strconv.Atoi(value)
		if err != nil || n < least || n > most {
			return errBadValue
		}
		*field(s.c) = n
		return nil
	}
}

func envBool(set func(c *Config, yes bool)) func(*envSettings, string) error {
	return func(s *envSettings, value string) error {
		switch strings.ToLower(value) {
		case "true", "yes", "on", "1":
			set(s.c, true)
		case "false", "no", "off", "0":
			set(s.c, false)
		default:
			return errBadValue
		}
		return nil
	}
}

func envDuration(fields func(*Config) []*time.Duration) func(*envSettings, string) error {
	return func(s *envSettings, value string) error {
		d, _ := time.ParseDuration(value) // 0 if it is none
		if seconds, err := strconv.ParseFloat(value, 64); err == nil && seconds < noTimeout.Seconds() {
			d = time.Duration(seconds * float64(time.Second))
		}
		if value == "none" {
			d = -1 // which is how Config says it
		} else if d <= 0 {
			return errBadValue
		}
		for _, f := range fields(s.c) {
			*f = d
		}
		return nil
	}
}

func envPath(field func(*Config) *string) func(*envSettings, string) error {
	return func(s *envSettings, value string) error {
		if !filepath.IsAbs(value) {
			return errBadValue
		}
		*field(s.c) = value
		return nil
	}
}

func envMode(s *envSettings, value string) error {
	n, err := strconv.ParseUint(value, 8, 32)
	if err != nil || n == 0 || n > 0o777 {
		return errBadValue
	}
	s.c.Unix.Mode = os.FileMode(n)
	return nil
}

func envHost(s *envSettings, value string) error {
	host := strings.TrimSuffix(strings.TrimPrefix(value, "["), "]")
	if strings.ContainsAny(host, "[]/ ") || strings.Count(host, ":") == 1 {
		return errBadValue
	}
	s.c.TCP.Host = host
	return nil
}

func envRate(s *envSettings, value string) error {
	rate, err := strconv.ParseFloat(value, 64)
	if err != nil || !(rate > 0) || math.IsInf(rate, 0) {
		return errBadValue
	}
	s.c.Limits.MaxRate = rate
	return nil
}

func envLogLevel(s *envSettings, value string) error {
	var level slog.Level
	if level.UnmarshalText([]byte(value)) != nil {
		return errBadValue
	}
	s.c.Logger = stderrLogger(level)
	return nil
}

func stderrLogger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

func envTransports(r envRole) func(*envSettings, string) error {
	return func(s *envSettings, value string) error {
		var list []string
		if strings.HasPrefix(value, "[") {
			if json.Unmarshal([]byte(value), &list) != nil {
				return errBadValue
			}
		} else {
			list = strings.Split(value, ",")
		}
		for i := range list {
			if list[i] = strings.TrimSpace(list[i]); list[i] == "" || !isScheme(list[i]) {
				return errBadValue
			}
		}
		if len(list) == 0 {
			return errBadValue
		}
		s.roles[r].transports = list
		s.roles[r].order = s.prefix + [...]string{asServer: "SERVER", asDialler: "CLIENT"}[r] + "_TRANSPORTS"
		return nil
	}
}

// What there is of certificates, by its place in envSettings.pem.
const (
	pemCert = iota
	pemKey
	pemRoots
)

func envPEM(r envRole, what int) func(*envSettings, string) error {
	return func(s *envSettings, value string) error {
		if isFileURI(value) && !filepath.IsAbs(filePath(value)) || !isFileURI(value) && !strings.Contains(value, "-----BEGIN ") {
			return errBadValue
		}
		s.pem[r][what] = value
		return nil
	}
}

// reject notes that a variable's value is of no use. Keys are not repeated.
func (s *envSettings) reject(v *envVar, value string, err error) {
	shown := quoted(value, 64)
	if strings.HasSuffix(v.name, "_KEY") && !isFileURI(value) {
		shown = "a value that is not shown"
	}
	message := fmt.Sprintf("%s%s has %s; right is %s", s.prefix, v.name, shown, v.right)
	e := &Error{Code: InvalidArgument, Message: message}
	if err != errBadValue {
		e.Err = err
	}
	s.errs = append(s.errs, e)
}

// check looks at what several variables say together.
func (s *envSettings) check() {
	c := s.c
	bad := func(format string, args ...any) {
		s.errs = append(s.errs, &Error{Code: InvalidArgument, Message: fmt.Sprintf(format, args...)})
	}
	if c.TCP.MaxPort != 0 && c.TCP.MinPort > c.TCP.MaxPort {
		bad("%[1]sMIN_PORT has %[2]d, which is more than %[1]sMAX_PORT, %[3]d", s.prefix, c.TCP.MinPort, c.TCP.MaxPort)
	}
	if c.Limits.MaxBurst != 0 && c.Limits.MaxRate == 0 {
		bad("%[1]sRATE_LIMIT_BURST_CAPACITY has %[2]d, but %[1]sRATE_LIMIT_REQUESTS_PER_SECOND is not set", s.prefix, c.Limits.MaxBurst)
	}
	if c.LogTransport && c.Logger == nil {
		c.Logger = stderrLogger(slog.LevelInfo)
	}
	for r, side := range [...]string{asServer: "SERVER", asDialler: "CLIENT"} {
		other := [...]string{asServer: "CLIENT", asDialler: "SERVER"}[r]
		cert, key, roots := s.pem[r][pemCert], s.pem[r][pemKey], s.pem[r][pemRoots]
		if (cert == "") != (key == "") || isFileURI(cert) != isFileURI(key) {
			bad("%[1]s%[2]s_CERT and %[1]s%[2]s_KEY: set both, and both as PEM or both as file://", s.prefix, side)
			continue
		}
		if err := s.roles[r].tls.setPair(cert, key); err != nil {
			bad("%[1]s%[2]s_CERT and %[1]s%[2]s_KEY: %[3]v", s.prefix, side, err)
		}
		if err := s.roles[r].tls.setCAs(roots); err != nil {
			bad("%s%s_ROOT_CERTS: %v", s.prefix, other, err)
		}
	}
}

// errNoTLS is why a build with the tag plugwire_notls has no use for certificates.
var errNoTLS = &Error{Code: Unimplemented, Message: "this program is built without TLS", Hint: "build it without the tag plugwire_notls"}

func isFileURI(value string) bool { return strings.HasPrefix(value, "file://") }

// filePath returns the path in a file URI: of file:///C:/x.pem on Windows it is C:/x.pem.
func filePath(uri string) string {
	path := strings.TrimPrefix(uri, "file://")
	if rest := strings.TrimPrefix(path, "/"); filepath.VolumeName(rest) != "" {
		return rest
	}
	return path
}

// setPair makes a pair this side's certificate; "" and "" are none.
func (t *TLSConfig) setPair(cert, key string) error {
	if isFileURI(cert) {
		t.CertFile, t.KeyFile = filePath(cert), filePath(key)
		return nil
	}
	if cert == "" {
		return nil
	}
	return t.setPairPEM([]byte(cert), []byte(key))
}

// setCAs makes the certificates the authorities; "" is none.
func (t *TLSConfig) setCAs(roots string) error {
	if isFileURI(roots) {
		t.CAFile = filePath(roots)
		return nil
	}
	if roots == "" {
		return nil
	}
	return t.setCAsPEM([]byte(roots))
}

// warn says which variables with the prefix are no settings.
func (s *envSettings) warn(environ []string) {
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if runtime.GOOS == "windows" {
			name = strings.ToUpper(name) // where names have no case
		}
		rest, ok := strings.CutPrefix(name, s.prefix)
		if !ok || name == launchVar || slices.ContainsFunc(s.vars, func(v envVar) bool { return v.name == rest }) {
			continue
		}
		warning := plainText(name, maxLaunchSeen) + " is no setting of plugwire"
		s.c.EnvWarnings = append(s.c.EnvWarnings, warning)
	}
	slices.Sort(s.c.EnvWarnings)
	if s.c.Logger != nil {
		for _, warning := range s.c.EnvWarnings {
			s.c.Logger.Warn("plugwire: " + warning)
		}
	}
}

// orderName names what says which transports may be used.
func (c *Config) orderName() string { return cmp.Or(c.order, "Config.Transports") }

// An envRole is what a Config is used for.
type envRole int

const (
	asServer envRole = iota
	asDialler
)

// envRoles is what the environment says for each role alone.
type envRoles [2]struct {
	transports []string
	order      string // the variable that has them
	tls        TLSConfig
}

// inRole returns c with what the environment says for the role in the fields that
// the program has not set; nil stays nil.
func (c *Config) inRole(r envRole) *Config {
	if c == nil || c.env == nil {
		return c
	}
	d, e := *c, &c.env[r]
	d.env = nil
	if d.Transports == nil {
		d.Transports, d.order = e.transports, e.order
	}
	if t := &d.TLS; t.CertFile == "" && t.KeyFile == "" && t.cert == nil {
		t.CertFile, t.KeyFile, t.cert = e.tls.CertFile, e.tls.KeyFile, e.tls.cert
	}
	if t := &d.TLS; t.CAFile == "" && t.roots == nil {
		t.CAFile, t.roots = e.tls.CAFile, e.tls.roots
	}
	return &d
}
