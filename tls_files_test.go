//go:build !plugwire_notls

package plugwire

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// certOf returns the certificate that a side with the configuration shows now.
func certOf(t testing.TB, cfg *Config) *x509.Certificate {
	t.Helper()
	c, err := cfg.tlsConfig(false, "")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := c.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	return cert.Leaf
}

// age lets files look as if they had not changed for long.
func age(t testing.TB, names ...string) {
	t.Helper()
	then := time.Now().Add(-time.Hour)
	for _, name := range names {
		if err := os.Chtimes(name, then, then); err != nil {
			t.Fatal(err)
		}
	}
}

// replace puts a file in place of another at once, as careful tools do.
func replace(t testing.TB, name string, b []byte) {
	t.Helper()
	writeFile(t, name+".new", b)
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

// A pair of which one half is new, or half-written, changes nothing: whoever
// connects then gets the old one, also by a Config of its own.
func TestX6BrokenPairKeepsTheOldOne(t *testing.T) {
	ca := newTestCA(t)
	f := newCertFiles(t.TempDir())
	old, next := ca.issue(t, nil), ca.issue(t, nil)
	f.write(t, old, ca)
	var log bytes.Buffer
	cfg := &Config{TLS: f.config(), Logger: slog.New(slog.NewTextHandler(&log, nil))}
	show := func(what string, want tls.Certificate, errors uint64) {
		t.Helper()
		before, logged := certErrors.Load(), strings.Count(log.String(), "cannot be used")
		if got := certOf(t, cfg); !got.Equal(want.Leaf) {
			t.Errorf("%s: the wrong certificate", what)
		}
		for range 3 { // looking again finds nothing new to say
			certOf(t, &Config{TLS: f.config()})
		}
		if n := certErrors.Load() - before; n != errors {
			t.Errorf("%s: %d errors counted, want %d", what, n, errors)
		}
		if n := strings.Count(log.String(), "cannot be used") - logged; n != int(errors) {
			t.Errorf("%s: %d warnings, want %d", what, n, errors)
		}
		if strings.Contains(log.String(), "PRIVATE") {
			t.Errorf("%s: a key was logged", what)
		}
	}
	show("at first", old, 0)
	nextCert, nextKey := certPEM(next.Leaf), keyPEM(t, next)
	writeFile(t, f.cert, nextCert[:len(nextCert)/2])
	show("half-written certificate", old, 1)
	writeFile(t, f.cert, nextCert)
	show("certificate without its key", old, 1)
	writeFile(t, f.key, nextKey[:len(nextKey)/2])
	show("half-written key", old, 1)
	writeFile(t, f.key, nextKey)
	show("whole again", next, 0)
	writeFile(t, f.cert, append(certPEM(old.Leaf), nextCert[:len(nextCert)-3]...))
	writeFile(t, f.key, keyPEM(t, old))
	show("chain that breaks off", next, 1)
	if err := os.Remove(f.key); err != nil {
		t.Fatal(err)
	}
	show("missing key", next, 1)
	f.write(t, old, ca)
	show("the first one again", old, 0)

	stats := (&Server{Config: cfg}).Stats()
	if want := certErrors.Load(); stats.CertErrors != want {
		t.Errorf("Stats.CertErrors is %d, want %d", stats.CertErrors, want)
	}
}

// The same for authorities: one that is broken off must not be dropped from the list.
func TestX6BrokenAuthoritiesKeepTheOldOnes(t *testing.T) {
	ca, next := newTestCA(t), newTestCA(t)
	f := newCertFiles(t.TempDir())
	f.write(t, ca.issue(t, nil), ca)
	c := f.config()
	accepts := func(ca *testCA) bool {
		return verifierOf(t, c, false, "").verify(stateOf(ca.issue(t, nil).Leaf)) == nil
	}
	both := certPEM(next.cert, ca.cert)
	for cut := 1; cut < len(certPEM(ca.cert)); cut += 7 {
		writeFile(t, f.ca, both[:len(both)-cut])
		if !accepts(ca) || cut > 1 && accepts(next) { // without its last byte, a line end, the file is whole
			t.Fatalf("cut by %d bytes: accepts the old authority %v, the new one %v", cut, accepts(ca), accepts(next))
		}
		writeFile(t, f.ca, certPEM(ca.cert))
		if !accepts(ca) || accepts(next) {
			t.Fatal("the list of before is not back")
		}
	}
	before, broken := certErrors.Load(), certPEM(ca.cert)
	writeFile(t, f.ca, append(broken[:len(broken)-30], both...)) // one that the decoder would pass over
	if !accepts(ca) || accepts(next) || certErrors.Load() == before {
		t.Error("a file with a broken block in it was used")
	}
	writeFile(t, f.ca, both)
	if !accepts(ca) || !accepts(next) {
		t.Error("the overlap is not accepted")
	}
	writeFile(t, f.ca, append(certPEM(next.cert), "# the only one since May\n"...))
	if accepts(ca) || !accepts(next) {
		t.Error("after the overlap only the new authority is to be accepted")
	}
}

// Each way in which files change is seen at the next handshake: this many, in a row,
// faster than any clock of a file system ticks.
func TestX6EachChangeIsSeen(t *testing.T) {
	ca := newTestCA(t)
	certs := make([]tls.Certificate, 5)
	for i := range certs {
		certs[i] = ca.issue(t, func(c *x509.Certificate) { c.SerialNumber.SetInt64(int64(1000 + i)) })
	}
	t.Run("written in place at the same time", func(t *testing.T) {
		f := newCertFiles(t.TempDir())
		cfg := &Config{TLS: f.config()}
		now := time.Now()
		for i := range 50 {
			f.write(t, certs[i%len(certs)], ca)
			for _, name := range []string{f.cert, f.key, f.ca} { // as if the clock stood still
				if err := os.Chtimes(name, now, now); err != nil {
					t.Fatal(err)
				}
			}
			if got := certOf(t, cfg); !got.Equal(certs[i%len(certs)].Leaf) {
				t.Fatalf("change %d was not seen", i)
			}
		}
	})
	t.Run("other file of the same time and size", func(t *testing.T) {
		f := newCertFiles(t.TempDir())
		cfg := &Config{TLS: f.config()}
		f.write(t, certs[0], ca)
		// The files are padded to one size, so that only which file it is differs.
		pad := func(b []byte) []byte { return append(b, bytes.Repeat([]byte("\n"), 2000-len(b))...) }
		for i := range 50 {
			cert := certs[i%len(certs)]
			for name, b := range map[string][]byte{f.cert: certPEM(cert.Leaf), f.key: keyPEM(t, cert)} {
				writeFile(t, name+".new", pad(b))
				then := time.Unix(1e9, 0)
				if err := os.Chtimes(name+".new", then, then); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(name+".new", name); err != nil {
					t.Fatal(err)
				}
			}
			if got := certOf(t, cfg); !got.Equal(cert.Leaf) {
				t.Fatalf("change %d was not seen", i)
			}
		}
	})
	t.Run("symbolic link of a directory swapped", func(t *testing.T) {
		vol := newKubeVolume(t)
		cfg := &Config{TLS: vol.config()}
		for i := range 50 {
			cert := certs[i%len(certs)]
			vol.swap(cert, ca)
			if got := certOf(t, cfg); !got.Equal(cert.Leaf) {
				t.Fatalf("swap %d was not seen", i)
			}
		}
	})
	t.Run("nothing is read that has not changed", func(t *testing.T) {
		f := newCertFiles(t.TempDir())
		f.write(t, certs[0], ca)
		age(t, f.cert, f.key, f.ca)
		w := pairFiles(f.cert, f.key)
		reads := 0
		w.parse = func(b [][]byte) (*tls.Certificate, error) { reads++; return parsePair(b) }
		for range 10 {
			certOf(t, &Config{TLS: f.config()})
		}
		w.sum = [32]byte{} // it would be parsed if it were read
		certOf(t, &Config{TLS: f.config()})
		if reads != 1 {
			t.Errorf("read %d times", reads)
		}
	})
}

// What could not be read at first is an error, and is tried again.
func TestX6FirstLoadFails(t *testing.T) {
	ca := newTestCA(t)
	f := newCertFiles(t.TempDir())
	cfg := &Config{TLS: f.config()}
	before := certErrors.Load()
	for range 2 {
		_, err := cfg.tlsConfig(false, "")
		var own *Error
		if !errors.As(err, &own) || own.Code != FailedPrecondition || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), f.ca) {
			t.Fatalf("missing files: %v", err)
		}
	}
	cert := ca.issue(t, nil)
	f.write(t, cert, ca)
	if got := certOf(t, cfg); !got.Equal(cert.Leaf) {
		t.Error("the wrong certificate")
	}
	if certErrors.Load() != before {
		t.Error("an error that the caller gets is counted")
	}
}

// A kubeVolume is a directory as Kubernetes mounts secrets: the files are links
// into ..data, which is a link to a directory that is replaced as a whole.
type kubeVolume struct {
	certFiles
	t    testing.TB
	n    int
	last string
}

func newKubeVolume(t testing.TB) *kubeVolume {
	t.Helper()
	v := &kubeVolume{certFiles: newCertFiles(t.TempDir()), t: t}
	for _, name := range []string{v.cert, v.key, v.ca} {
		if err := os.Symlink(filepath.Join("..data", filepath.Base(name)), name); err != nil {
			t.Skipf("no symbolic links here: %v", err)
		}
	}
	return v
}

// swap is a new version of the volume.
func (v *kubeVolume) swap(cert tls.Certificate, cas ...*testCA) {
	v.t.Helper()
	v.n++
	name := fmt.Sprintf("..v%d", v.n)
	dir := filepath.Join(v.dir, name)
	link := filepath.Join(v.dir, "..data")
	must := func(err error) {
		v.t.Helper()
		if err != nil {
			v.t.Fatal(err)
		}
	}
	must(os.Mkdir(dir, 0o700))
	newCertFiles(dir).write(v.t, cert, cas...)
	must(os.Symlink(name, link+".tmp"))
	must(os.Rename(link+".tmp", link))
	if v.last != "" {
		must(os.RemoveAll(v.last))
	}
	v.last = dir
}

// Both sides rotate 100 times, certificates and authorities, with a time in which
// both authorities are known, while others connect: no handshake fails.
func TestX6RotationUnderLoad(t *testing.T) {
	t.Run("files replaced one by one", func(t *testing.T) {
		rotateUnderLoad(t, func(f certFiles) func(tls.Certificate, ...*testCA) {
			return func(cert tls.Certificate, cas ...*testCA) {
				var authorities []*x509.Certificate
				for _, ca := range cas {
					authorities = append(authorities, ca.cert)
				}
				replace(t, f.ca, certPEM(authorities...))
				replace(t, f.cert, certPEM(cert.Leaf)) // until the key follows, a mismatched pair
				replace(t, f.key, keyPEM(t, cert))
			}
		}, newCertFiles(t.TempDir()), newCertFiles(t.TempDir()))
	})
	t.Run("Kubernetes volume", func(t *testing.T) {
		server, client := newKubeVolume(t), newKubeVolume(t)
		swaps := map[certFiles]func(tls.Certificate, ...*testCA){server.certFiles: server.swap, client.certFiles: client.swap}
		before := certErrors.Load()
		rotateUnderLoad(t, func(f certFiles) func(tls.Certificate, ...*testCA) { return swaps[f] }, server.certFiles, client.certFiles)
		if n := certErrors.Load() - before; n != 0 {
			t.Errorf("%d errors counted: a volume is never half-written", n)
		}
	})
}

func rotateUnderLoad(t *testing.T, writer func(certFiles) func(tls.Certificate, ...*testCA), server, client certFiles) {
	if runtime.GOOS == "windows" {
		t.Skip("a file that somebody reads cannot be replaced here")
	}
	const callers = 2
	rotations := 15
	if longTests {
		rotations = 100
	}
	writeServer, writeClient := writer(server), writer(client)
	ca, next := newTestCA(t), newTestCA(t)
	writeServer(ca.issue(t, nil), ca, next)
	writeClient(ca.issue(t, nil), ca, next)

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	sc := tlsConfigOf(t, server.config(), false, "")
	var all sync.WaitGroup
	all.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() { endTLS(nc, tls.Server(nc, sc), false) })
		}
	})
	var handshakes [callers]atomic.Int64
	stop := make(chan struct{})
	var callersDone sync.WaitGroup
	for i := range callers {
		callersDone.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				dc, err := (&Config{TLS: client.config()}).tlsConfig(true, testName)
				if err != nil {
					t.Errorf("a dialler cannot use its files: %v", err)
					return
				}
				dc.CurvePreferences = []tls.CurveID{tls.X25519} // post-quantum exchanges are slow with -race
				nc, err := net.Dial("tcp", ln.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				if e := endTLS(nc, tls.Client(nc, dc), true); e.err != nil {
					t.Errorf("handshake %d failed: %v", handshakes[i].Load(), e.err)
					return
				}
				handshakes[i].Add(1)
			}
		})
	}
	// settle waits until each caller has done a handshake that began after the change.
	settle := func() {
		for i := range handshakes {
			for want := handshakes[i].Load() + 2; handshakes[i].Load() < want && !t.Failed(); {
				time.Sleep(100 * time.Microsecond)
			}
		}
	}
	settle() // the first to read the files must not find them half replaced
	for i := 0; i < rotations && !t.Failed(); i++ {
		// Both sides show certificates of the new authority, which they know already,
		// and then forget the old one and learn of the one after.
		after := newTestCA(t)
		server, client := next.issue(t, nil), next.issue(t, nil)
		writeServer(server, ca, next)
		writeClient(client, ca, next)
		settle()
		writeServer(server, next, after)
		writeClient(client, next, after)
		settle()
		ca, next = next, after
	}
	close(stop)
	callersDone.Wait()
	ln.Close()
	all.Wait()
	sum := int64(0)
	for i := range handshakes {
		sum += handshakes[i].Load()
	}
	t.Logf("%d rotations, %d handshakes", rotations, sum)
}
