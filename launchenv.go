package plugwire

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// launchVar is the one environment variable in which a host tells its plugin
// everything. Its value is a version and key=value fields, escaped as in the
// launch line; keys that the plugin does not know are ignored:
//
//	1|cookie=plugwire|transports=unix,tcp|dir=/tmp/plugwire-123|versions=1,2|stdin=host|group=own|host=1234|deathsig=own
//
// The plugin removes it from its environment once read, so that processes which
// it starts do not take themselves for plugins.
const launchVar = "PLUGWIRE_LAUNCH"

const launchVarVersion = "1"

// launchOrder is what a host tells its plugin in launchVar.
type launchOrder struct {
	cookie     string   // cookie: Config.Launch.MagicCookie
	transports []string // transports: those allowed, in order of preference
	dir        string   // dir: a private directory for the socket, removed by the host, or ""
	versions   []int    // versions: of the application's protocol; empty: not negotiated
	stdin      bool     // stdin=host: stdin is a pipe that ends with the host
	ownGroup   bool     // group=own: the process group was made for the plugin, which ends it when the host is gone
	host       int      // host: the number of the host's process, or 0

	// deathSignal: deathsig=own, the process that the host starts gets SIGKILL
	// when the host dies; it may undo that once it sees to its end itself.
	deathSignal bool

	// secret: the one-time secret, or "stdin" when it is the first line of stdin.
	secret      *secret
	secretStdin bool

	fd     int      // fd: the descriptor of the plugin's end of a socketpair, or 0
	passed *os.File // the host's file of that

	detach time.Duration // detach: how long the plugin lives on without a host that did not end it

	tls []string // tls: the transports, of those allowed, that are encrypted by automatic mutual TLS
	pin string   // pin: of the host's key for that, see keyPin
}

// secretFromStdin is the value of the field secret when stdin has the secret.
const secretFromStdin = "stdin"

// String formats the variable's value.
func (o *launchOrder) String() string {
	versions := make([]string, len(o.versions))
	for i, v := range o.versions {
		versions[i] = strconv.Itoa(v)
	}
	fields := []launchField{
		{"cookie", o.cookie},
		{"transports", strings.Join(o.transports, ",")},
		{"dir", o.dir},
		{"versions", strings.Join(versions, ",")},
	}
	if o.stdin {
		fields = append(fields, launchField{"stdin", "host"})
	}
	if o.ownGroup {
		fields = append(fields, launchField{"group", "own"})
	}
	if o.host != 0 {
		fields = append(fields, launchField{"host", strconv.Itoa(o.host)})
	}
	if o.fd != 0 {
		fields = append(fields, launchField{"fd", strconv.Itoa(o.fd)})
	}
	if o.detach > 0 {
		fields = append(fields, launchField{"detach", o.detach.String()})
	}
	if o.deathSignal {
		fields = append(fields, launchField{"deathsig", "own"})
	}
	switch {
	case o.secretStdin:
		fields = append(fields, launchField{"secret", secretFromStdin})
	case o.secret != nil:
		fields = append(fields, launchField{"secret", o.secret.text()})
	}
	if len(o.tls) > 0 {
		fields = append(fields, launchField{"tls", strings.Join(o.tls, ",")}, launchField{"pin", o.pin})
	}
	return string(appendFields([]byte(launchVarVersion), fields))
}

// overStdio reports whether the connection is stdin and stdout. That must be known
// beforehand, so no other transport is offered with it.
func (o *launchOrder) overStdio() bool { return slices.Equal(o.transports, []string{stdioScheme}) }

// forStdin formats what is told on stdin, perhaps to a process on another machine.
func (o *launchOrder) forStdin() string {
	far := launchOrder{cookie: o.cookie, transports: o.transports, versions: o.versions, tls: o.tls, pin: o.pin}
	return far.String()
}

// autoTLS reports whether the transport is one of o.tls.
func (o *launchOrder) autoTLS(scheme string) bool { return slices.Contains(o.tls, scheme) }

// parseLaunchOrder reads the variable's value. Of a field that comes twice, the
// last counts.
func parseLaunchOrder(s string) (*launchOrder, error) {
	version, rest, _ := strings.Cut(s, "|")
	if version != launchVarVersion {
		return nil, &Error{Code: FailedPrecondition, Op: "launch", Hint: "build both with the same plugwire", Message: fmt.Sprintf(
			"the host's %s has version %s, this plugin reads version %s", launchVar, quoted(version, maxLaunchSeen), launchVarVersion)}
	}
	bad := func(key, value string) error {
		return &Error{Code: InvalidArgument, Op: "launch", Message: fmt.Sprintf(
			"the host's %s has a malformed %s: %s", launchVar, key, quoted(value, maxLaunchSeen))}
	}
	fields, err := parseFields(rest)
	if err != nil {
		return nil, bad("field", "") // it may hold a secret
	}
	o := new(launchOrder)
	for _, f := range fields {
		switch f.key {
		case "cookie":
			o.cookie = f.value
		case "transports":
			o.transports = splitList(f.value)
		case "dir":
			o.dir = f.value
		case "versions":
			o.versions = nil
			for _, text := range splitList(f.value) {
				v, err := strconv.Atoi(text)
				if err != nil {
					return nil, bad("list of versions", f.value)
				}
				o.versions = append(o.versions, v)
			}
		case "stdin":
			o.stdin = f.value == "host"
		case "group":
			o.ownGroup = f.value == "own"
		case "deathsig":
			o.deathSignal = f.value == "own"
		case "host":
			if o.host, err = strconv.Atoi(f.value); err != nil {
				return nil, bad("host", f.value)
			}
		case "detach":
			if o.detach, err = time.ParseDuration(f.value); err != nil {
				return nil, bad("detach", f.value)
			}
		case "fd":
			if o.fd, err = strconv.Atoi(f.value); err != nil || o.fd < 3 {
				return nil, bad("fd", f.value)
			}
		case "tls":
			o.tls = splitList(f.value)
		case "pin":
			o.pin = f.value
		case "secret":
			if o.secretStdin = f.value == secretFromStdin; o.secretStdin {
				continue
			}
			if o.secret, err = parseSecret(f.value); err != nil {
				return nil, bad("secret", "")
			}
		}
	}
	return o, nil
}

// splitList splits at commas; the empty string has no items.
func splitList(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// accept decides whether the plugin with cfg may serve this host, and chooses
// the application's version: 0 when it is not negotiated.
func (o *launchOrder) accept(cfg *Config) (version int, err error) {
	if o.cookie != cfg.Launch.MagicCookie {
		return 0, &Error{Code: FailedPrecondition, Op: "launch", Message: fmt.Sprintf(
			"this plugin belongs to another program: it expects a host with the magic cookie %s, the one that started it has %s",
			quoted(cfg.Launch.MagicCookie, maxLaunchSeen), quoted(o.cookie, maxLaunchSeen)),
			Hint: "Config.Launch.MagicCookie must be the same on both sides"}
	}
	if version, err = commonVersion(cfg.Versions, o.versions); err != nil {
		return 0, &Error{Code: FailedPrecondition, Op: "launch", Message: fmt.Sprintf(
			"no common version of the application's protocol: the plugin speaks %v, its host %v", cfg.Versions, o.versions),
			Hint: "Config.Versions of both sides must share one"}
	}
	return version, nil
}
