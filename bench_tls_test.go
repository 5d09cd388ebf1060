//go:build !plugwire_notls

package plugwire

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net"
	"strings"
	"testing"
)

// BenchmarkTLS compares mutual TLS over TCP with the same work in plain, and bulk
// with crypto/tls alone. In each, x-raw is our row over TLS divided by the other.
func BenchmarkTLS(b *testing.B) {
	for _, n := range []int{1, 64} {
		compareTLS(b, workload{name: fmt.Sprintf("unary-%d-to-plain", n), size: 64, workers: n, batch: 1, latency: n == 1}, tlsRow(oursUnaryRow), oursUnaryRow)
	}
	bulk := workload{name: "64KiB-oneway-to-crypto/tls", size: 64 << 10, workers: 1, batch: 1, oneWay: true, bulk: true}
	compareTLS(b, bulk, tlsRow(oursOneWayRow), rawTLSOneWayRow)
	comparePools(b, "-tls", tlsRow(oursUnaryRow))
	compareTLS(b, workload{name: "first-call-to-plain", size: 64, workers: 1, batch: 1, latency: true}, tlsRow(oursConnectRow), oursConnectRow)
}

func compareTLS(b *testing.B, w workload, rows ...row) {
	b.Run("tcp/"+w.name, func(b *testing.B) { reportRows(b, w, runTurns(b, "tcp", w, turn, rows...)) })
}

// tlsRow is r over TLS.
func tlsRow(r row) row {
	r.name, r.service = "tls", "plugwire-tls"
	return r
}

var rawTLSOneWayRow = row{name: "crypto/tls", service: "raw-count-tls", connect: connectRawOneWay, shape: oneWorker}

func init() {
	benchServices["plugwire-tls"] = func(network string) (string, func(), error) {
		id, text, err := newBenchIdentity()
		if err != nil {
			return "", nil, err
		}
		addr, stop, err := serveOurs(network, &Config{TLS: id})
		return addr + text, stop, err
	}
	benchTarget = func(addr string) (string, *Config) {
		addr, id, _ := parseBenchIdentity(addr)
		return addr, &Config{TLS: id}
	}
	benchServices["raw-count-tls"] = func(network string) (string, func(), error) {
		id, text, err := newBenchIdentity()
		if err != nil {
			return "", nil, err
		}
		settings, err := (&Config{TLS: id}).tlsConfig(false, "")
		if err != nil {
			return "", nil, err
		}
		addr, stop, err := rawService(func(nc net.Conn) error { return rawCount(tls.Server(nc, settings)) })(network)
		return addr + text, stop, err
	}
	dialRawPlain := dialRaw
	dialRaw = func(network, addr string) (net.Conn, error) {
		addr, id, ok := parseBenchIdentity(addr)
		nc, err := dialRawPlain(network, addr)
		if err != nil || !ok {
			return nc, err
		}
		settings, err := (&Config{TLS: id}).tlsConfig(true, "")
		if err != nil {
			return nil, err
		}
		return tls.Client(nc, settings), nil
	}
}

// newBenchIdentity makes a key for both sides, and the text from which the other
// process gets it: it follows the address.
func newBenchIdentity() (TLSConfig, string, error) {
	cert, pin, err := newIdentity("bench")
	if err != nil {
		return TLSConfig{}, "", err
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	encode := base64.StdEncoding.EncodeToString
	return pinnedTLS(cert, pin), " " + encode(cert.Certificate[0]) + " " + encode(key) + " " + pin, err
}

func parseBenchIdentity(addr string) (string, TLSConfig, bool) {
	part := strings.Fields(addr)
	if len(part) != 4 {
		return addr, TLSConfig{}, false
	}
	der, err1 := base64.StdEncoding.DecodeString(part[1])
	pkcs8, err2 := base64.StdEncoding.DecodeString(part[2])
	key, err3 := x509.ParsePKCS8PrivateKey(pkcs8)
	if err1 != nil || err2 != nil || err3 != nil {
		panic(fmt.Sprint(err1, err2, err3))
	}
	return part[0], pinnedTLS(&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, part[3]), true
}
