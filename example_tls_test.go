//go:build !plugwire_notls

package plugwire_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/plugwire/plugwire"
)

// Over TCP each side has a certificate, and knows the authority that signs the
// other's. The dialling side wants the server's to be for the host that it dials;
// here the server wants the client's to be for one name. The files are looked at
// again at each handshake, so they may be exchanged.
func ExampleTLSConfig() {
	dir := exampleFiles("127.0.0.1", "client.example") // as your authority issues them
	defer os.RemoveAll(dir)
	in := func(name string) string { return filepath.Join(dir, name) }

	mux := plugwire.NewMux()
	mux.HandleFunc("greet", func(ctx context.Context, _ []byte) ([]byte, error) {
		info, _ := plugwire.InfoFromContext(ctx)
		return append([]byte("hello, "), info.Peer.Certificate().DNSNames[0]...), nil
	})
	srv := &plugwire.Server{Mux: mux, Config: &plugwire.Config{TLS: plugwire.TLSConfig{
		CertFile: in("127.0.0.1.pem"),
		KeyFile:  in("127.0.0.1.pem"),
		CAFile:   in("ca.pem"),
		Names:    []string{"client.example"},
	}}}
	l, err := srv.Listen("tcp:") // with TLS, addresses beyond loopback are allowed too
	if err != nil {
		fmt.Println(err)
		return
	}
	go srv.Serve(l)
	defer srv.Close()

	conn, err := plugwire.Dial(context.Background(), "tcp://"+l.Addr().String(), &plugwire.Config{TLS: plugwire.TLSConfig{
		CertFile: in("client.example.pem"),
		KeyFile:  in("client.example.pem"),
		CAFile:   in("ca.pem"),
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	reply, err := conn.Call(context.Background(), "greet", nil)
	fmt.Println(string(reply), err)
	// Output: hello, client.example <nil>
}

// exampleFiles makes an authority, ca.pem, and for each name a file with a
// certificate and its key, in a directory of their own.
func exampleFiles(names ...string) (dir string) {
	dir, _ = os.MkdirTemp("", "plugwire-example")
	caKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true}
	caDER, _ := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	caPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	os.WriteFile(filepath.Join(dir, "ca.pem"), caPEM, 0o600)
	for i, name := range names {
		key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		leaf := &x509.Certificate{SerialNumber: big.NewInt(int64(2 + i)), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
		if ip := net.ParseIP(name); ip != nil {
			leaf.IPAddresses = []net.IP{ip}
		} else {
			leaf.DNSNames = []string{name}
		}
		der, _ := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
		keyDER, _ := x509.MarshalPKCS8PrivateKey(key)
		b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})...)
		os.WriteFile(filepath.Join(dir, name+".pem"), b, 0o600)
	}
	return dir
}
