package plugwire

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// setEnv sets variables, which are given by pairs without the prefix, and returns the prefix.
func setEnv(t *testing.T, pairs ...string) (prefix string) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		t.Setenv("PWTEST_"+pairs[i], pairs[i+1])
	}
	return "PWTEST"
}

// fromEnv is ConfigFromEnv with these variables.
func fromEnv(t *testing.T, pairs ...string) *Config {
	t.Helper()
	c, err := ConfigFromEnv(setEnv(t, pairs...))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestNoVariablesGiveTheZeroConfig(t *testing.T) {
	c := fromEnv(t, "TCP_PORT", "", "LOG_LEVEL", "") // empty is as not there
	if c = c.inRole(asServer); !reflect.DeepEqual(*c, Config{}) {
		t.Fatalf("%+v", *c)
	}
}

// What is wrong is said all at once, each with name, value and what would be right.
func TestBadVariablesAreAllNamed(t *testing.T) {
	_, err := ConfigFromEnv(setEnv(t, "TCP_PORT", "http", "MAX_PORT", "65536", "UNIX_SOCKET_PERMISSIONS", "rw-------", "AUTO_MTLS", "maybe",
		"HANDSHAKE_TIMEOUT", "0", "SERVER_TRANSPORTS", "unix,,tcp", "SERVER_KEY", "hunter2", "SERVER_CERT", "/etc/cert.pem",
		"RATE_LIMIT_BURST_CAPACITY", "5"))
	if CodeOf(err) != InvalidArgument {
		t.Fatal(err)
	}
	for _, says := range []string{
		`PWTEST_TCP_PORT has "http"; right is a port`, `PWTEST_MAX_PORT has "65536"; right is a port`,
		`PWTEST_UNIX_SOCKET_PERMISSIONS has "rw-------"; right is octal digits`, `PWTEST_AUTO_MTLS has "maybe"; right is true or false`,
		`PWTEST_HANDSHAKE_TIMEOUT has "0"; right is a time as in 1m30s`, `PWTEST_SERVER_TRANSPORTS has "unix,,tcp"; right is schemes`,
		`PWTEST_SERVER_KEY has a value that is not shown; right is PEM`, `PWTEST_SERVER_CERT has "/etc/cert.pem"; right is PEM, or file://`,
		`PWTEST_RATE_LIMIT_BURST_CAPACITY has 5, but PWTEST_RATE_LIMIT_REQUESTS_PER_SECOND is not set`,
	} {
		if !strings.Contains(err.Error(), says) {
			t.Errorf("%v\ndoes not say %s", err, says)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Error("a key is in the error")
	}
	if n := strings.Count(err.Error(), "\n") + 1; n != 9 {
		t.Errorf("%d lines for 9 mistakes", n)
	}
}

func TestValuesOfVariables(t *testing.T) {
	for _, test := range []struct {
		name, value string
		want        any // nil: refused
	}{
		{"HANDSHAKE_TIMEOUT", "1m30s", 90 * time.Second},
		{"HANDSHAKE_TIMEOUT", "1.5", 1500 * time.Millisecond},
		{"HANDSHAKE_TIMEOUT", "none", time.Duration(-1)},
		{"HANDSHAKE_TIMEOUT", "-1s", nil},
		{"HANDSHAKE_TIMEOUT", "NaN", nil},
		{"HANDSHAKE_TIMEOUT", "1e300", nil},
		{"HANDSHAKE_TIMEOUT", "soon", nil},
		{"LOG_TRANSPORT_DETAILS", "YES", true},
		{"LOG_TRANSPORT_DETAILS", "0", false},
		{"LOG_TRANSPORT_DETAILS", "2", nil},
		{"UNIX_SOCKET_GROUP", "0", nil},
		{"UNIX_SOCKET_GROUP", "staff", nil},
		{"UNIX_SOCKET_PERMISSIONS", "1000", nil},
		{"UNIX_SOCKET_PERMISSIONS", "888", nil},
		{"UNIX_SOCKET_DIR", "run", nil},
		{"MAX_MESSAGE_SIZE", "4095", nil},
		{"MAX_MESSAGE_SIZE", "4096", 4096},
		{"MAX_CONCURRENT_CALLS", "0", nil},
		{"RATE_LIMIT_REQUESTS_PER_SECOND", "0.5", 0.5},
		{"RATE_LIMIT_REQUESTS_PER_SECOND", "Inf", nil},
		{"RATE_LIMIT_REQUESTS_PER_SECOND", "NaN", nil},
		{"TCP_HOST", "[::1]", "::1"},
		{"TCP_HOST", "localhost:80", nil},
		{"TCP_HOST", "tcp://localhost", nil},
		{"TCP_PORT", "0", 0},
		{"TCP_PORT", "-1", nil},
		{"LOG_LEVEL", "loud", nil},
		{"SERVER_TRANSPORTS", "[]", nil},
		{"SERVER_TRANSPORTS", "[unix]", nil},
		{"SERVER_TRANSPORTS", `["unix", 1]`, nil},
		{"SERVER_TRANSPORTS", "unix://", nil},
		{"CLIENT_CERT", "file://cert.pem", nil},
	} {
		t.Run(test.name+"="+test.value, func(t *testing.T) {
			c, err := ConfigFromEnv(setEnv(t, test.name, test.value))
			if test.want == nil || err != nil {
				if test.want != nil || CodeOf(err) != InvalidArgument || c != nil {
					t.Fatalf("%v, want %v", err, test.want)
				}
				return
			}
			i := slices.IndexFunc(envVars(), func(v envVar) bool { return v.name == test.name })
			field := reflect.ValueOf(*c)
			for name := range strings.SplitSeq(envVars()[i].field, ".") {
				field = field.FieldByName(name)
			}
			if field.Interface() != test.want {
				t.Fatalf("%v, want %v", field, test.want)
			}
		})
	}
}

func TestTransportsOfVariables(t *testing.T) {
	for _, value := range []string{"tcp,unix", " tcp , unix ", `["tcp","unix"]`, ` ["tcp", " unix"]`} {
		if c := fromEnv(t, "CLIENT_TRANSPORTS", strings.TrimSpace(value)); !slices.Equal(c.inRole(asDialler).Transports, []string{"tcp", "unix"}) {
			t.Errorf("%q gives %q", value, c.inRole(asDialler).Transports)
		}
	}
}

// A variable that is no setting is said, and does no harm.
func TestUnknownVariablesAreWarnings(t *testing.T) {
	c := fromEnv(t, "TCP_PROT", "7000", "PROTOCOL_VERSIONS", "1", "TCP_PORT", "7000")
	want := []string{"PWTEST_PROTOCOL_VERSIONS is no setting of plugwire", "PWTEST_TCP_PROT is no setting of plugwire"}
	if !slices.Equal(c.EnvWarnings, want) || c.TCP.Port != 7000 {
		t.Fatalf("%q, port %d", c.EnvWarnings, c.TCP.Port)
	}
}

func TestConfigFromEnvWantsAPrefix(t *testing.T) {
	for _, prefix := range []string{"", "A=B"} {
		if _, err := ConfigFromEnv(prefix); CodeOf(err) != InvalidArgument {
			t.Errorf("%q: %v", prefix, err)
		}
	}
}

// What the program sets counts, and not the variable.
func TestTheProgramWinsOverVariables(t *testing.T) {
	c := fromEnv(t, "CLIENT_TRANSPORTS", "unix", "SERVER_CERT", "file:///env/cert", "SERVER_KEY", "file:///env/key", "CLIENT_ROOT_CERTS", "file:///env/ca",
		"TCP_PORT", "7000", "LOG_LEVEL", "debug")
	c.Transports, c.TCP.Port, c.Logger = []string{"tcp"}, 8000, nil
	c.TLS.CertFile, c.TLS.KeyFile = "/program/cert", "/program/key"
	s, d := c.inRole(asServer), c.inRole(asDialler)
	if !slices.Equal(d.Transports, []string{"tcp"}) || d.TCP.Port != 8000 || d.Logger != nil {
		t.Errorf("%+v", d)
	}
	if s.TLS.CertFile != "/program/cert" || s.TLS.KeyFile != "/program/key" || s.TLS.CAFile != "/env/ca" {
		t.Errorf("%+v", s.TLS)
	}
	if d.TLS.CAFile != "" || d.TLS.CertFile != "/program/cert" {
		t.Errorf("%+v", d.TLS)
	}
	if again := s.inRole(asDialler); again != s {
		t.Error("a Config takes a second role")
	}
}

// A mistake in two variables together is one too.
func TestVariablesThatDoNotFitTogether(t *testing.T) {
	for says, pairs := range map[string][]string{
		"PWTEST_MIN_PORT has 3000, which is more than PWTEST_MAX_PORT, 2000":          {"MIN_PORT", "3000", "MAX_PORT", "2000"},
		"PWTEST_CLIENT_CERT and PWTEST_CLIENT_KEY: set both":                          {"CLIENT_CERT", "file:///x"},
		"PWTEST_SERVER_CERT and PWTEST_SERVER_KEY: set both, and both as PEM or both": {"SERVER_CERT", "file:///x", "SERVER_KEY", "-----BEGIN "},
		"PWTEST_CLIENT_ROOT_CERTS: ":                                                  {"CLIENT_ROOT_CERTS", "-----BEGIN CERTIFICATE-----"},
	} {
		t.Run(pairs[0], func(t *testing.T) {
			_, err := ConfigFromEnv(setEnv(t, pairs...))
			if err == nil || !strings.Contains(err.Error(), says) {
				t.Fatalf("%v, want %s", err, says)
			}
		})
	}
}

// envEffects see what each variable does.
var envEffects = map[string]func(*testing.T){}

func TestEachVariableHasItsEffect(t *testing.T) {
	if len(envEffects) == 0 {
		t.Skip("the tests of what variables do are for Unix")
	}
	for _, v := range envVars() {
		effect := envEffects[v.name]
		if effect == nil && strings.HasPrefix(v.field, "TLS.") && new(TLSConfig).setCAsPEM(nil) == error(errNoTLS) {
			continue
		}
		if effect == nil {
			t.Errorf("no test of what %s does", v.name)
			continue
		}
		t.Run(v.name, effect)
	}
}
