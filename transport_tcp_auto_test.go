package plugwire

import (
	"errors"
	"net"
	"strconv"
	"strings"
	"testing"
)

func TestTCPPortsOfConfig(t *testing.T) {
	taken := listenTCP(t, "tcp:", nil)
	port := taken.Addr().(*net.TCPAddr).Port
	for _, test := range []struct {
		cfg  TCPConfig
		code Code // OK: it listens
		says string
	}{
		{TCPConfig{Port: port}, AlreadyExists, "another process has this port"},
		{TCPConfig{MinPort: port, MaxPort: port}, AlreadyExists, "another process has this port"},
		{TCPConfig{Port: 80}, InvalidArgument, "Config.TCP.LowPorts"},
		{TCPConfig{MinPort: 80, MaxPort: 2000}, InvalidArgument, "port 80 is below 1024"},
		{TCPConfig{MaxPort: 80}, InvalidArgument, "Config.TCP.LowPorts"},
		{TCPConfig{Port: 70000}, InvalidArgument, "no ports from 70000 to 70000"},
		{TCPConfig{MinPort: 3000, MaxPort: 2000}, InvalidArgument, "no ports from 3000 to 2000"},
		{TCPConfig{MinPort: 40000, MaxPort: 40100}, OK, ""},
		{TCPConfig{Host: "192.0.2.1"}, PermissionDenied, "not a loopback address"},
	} {
		l, err := tcpTransport{}.Listen(t.Context(), "tcp:", (&Config{TCP: test.cfg}).withDefaults())
		if err == nil {
			if p := l.Addr().(*net.TCPAddr).Port; p < test.cfg.MinPort || p > test.cfg.MaxPort {
				t.Errorf("%+v listens at %d", test.cfg, p)
			}
			l.Close()
		}
		var e *Error
		if CodeOf(err) != test.code || err != nil && (!errors.As(err, &e) || e.Op != "listen" || e.Addr != "tcp:" || !strings.Contains(err.Error(), test.says)) {
			t.Errorf("%+v: %v", test.cfg, err)
		}
	}
	// An address that names a port means that port.
	cfg := (&Config{TCP: TCPConfig{Port: 80}}).withDefaults()
	l, err := tcpTransport{}.Listen(t.Context(), "tcp://127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

// All ports of a range are tried, wherever it is begun.
func TestTCPRangeIsUsedUp(t *testing.T) {
	var free int
	cfg := TCPConfig{MinPort: 2000, MaxPort: 2009}
	for free = 2000; free < 2010; free++ {
		tried := make(map[string]int)
		_, err := cfg.listen(func(hostPort string) (net.Listener, error) {
			if tried[hostPort]++; hostPort == net.JoinHostPort("127.0.0.1", strconv.Itoa(free)) {
				return nil, nil
			}
			return nil, &Error{Code: AlreadyExists}
		})
		if err != nil || len(tried) > 10 {
			t.Errorf("%v after %v", err, tried)
		}
	}
	_, err := cfg.listen(func(string) (net.Listener, error) { return nil, &Error{Code: AlreadyExists} })
	if CodeOf(err) != AlreadyExists || !strings.Contains(err.Error(), "all ports from 2000 to 2009 are taken") {
		t.Error(err)
	}
}
