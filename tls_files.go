//go:build !plugwire_notls

package plugwire

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// A watched is what certificate files have, read again when they change. There is
// no goroutine that watches them: each handshake looks, which takes a stat for
// each file and is never late.
type watched[T any] struct {
	names []string
	parse func(contents [][]byte) (T, error)

	mu    sync.Mutex    // held while files are looked at and read; guards what follows
	tried bool          // the files have been read; seen, sure and sum are of that time
	seen  []os.FileInfo // nil for one that is missing
	sure  bool          // a change since would be seen
	sum   [32]byte      // of what was read
	good  bool          // value is what the files had when they could last be used
	value T
	err   error // why they could not be used when they were last read
}

// The files that this process uses. All Configs that name the same ones share
// what was read, so that a Dial finds the old certificate where the new is broken.
// There are as many as a program names in its Configs: none is ever dropped.
var (
	watchedPairs sync.Map // names joined by NUL: *watched[*tls.Certificate]
	watchedCAs   sync.Map // name: *watched[*x509.CertPool]
)

func pairFiles(certFile, keyFile string) *watched[*tls.Certificate] {
	return watch(&watchedPairs, parsePair, certFile, keyFile)
}

func caFiles(name string) *watched[*x509.CertPool] {
	return watch(&watchedCAs, parseCAs, name)
}

func watch[T any](all *sync.Map, parse func([][]byte) (T, error), names ...string) *watched[T] {
	w, _ := all.LoadOrStore(strings.Join(names, "\x00"), &watched[T]{names: names, parse: parse})
	return w.(*watched[T])
}

// clockGrain is the time after which a file's change is sure to give it another
// modification time than the change before, at most: FAT counts in two seconds.
const clockGrain = 2 * time.Second

// readTries is how often files are read in one attempt while they keep changing.
const readTries = 3

// get returns what the files have, or had when they could last be used. When they
// never could, it says why.
func (w *watched[T]) get(log *slog.Logger) (T, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for try := 1; ; try++ {
		seen, sure := look(w.names)
		if w.tried && w.sure && sameFiles(w.seen, seen) {
			break
		}
		contents, sum, err := readAll(w.names)
		if w.tried && sum == w.sum {
			w.seen, w.sure = seen, sure && err == nil
			break
		}
		var value T
		if err == nil {
			value, err = w.parse(contents)
		}
		if now, _ := look(w.names); err != nil && try < readTries && !sameFiles(seen, now) {
			continue // perhaps the one file was of before a change, and the other of after it
		}
		// What cannot be read may become readable without another time.
		w.tried, w.seen, w.sure, w.sum, w.err = true, seen, sure && contents != nil, sum, nil
		if err == nil {
			w.value, w.good = value, true
			break
		}
		w.err = &Error{Code: FailedPrecondition, Message: "cannot use " + strings.Join(slices.Compact(slices.Clone(w.names)), " and "), Err: err}
		if w.good {
			certErrors.Add(1)
			if log != nil {
				log.Warn("plugwire: changed certificate files cannot be used, those of before still are", "err", w.err)
			}
		}
		break
	}
	if w.good {
		return w.value, nil
	}
	return w.value, w.err
}

// look says which files the names lead to, also by symbolic links, and whether
// they are old enough for a change from now on to be seen.
func look(names []string) (seen []os.FileInfo, sure bool) {
	now := time.Now()
	sure = true
	for _, name := range names {
		fi, err := os.Stat(name)
		if err != nil {
			fi = nil
		} else {
			os.SameFile(fi, fi) // on Windows it is this that finds the file's identity out
			sure = sure && now.Sub(fi.ModTime()) > clockGrain
		}
		seen = append(seen, fi)
	}
	return seen, sure
}

func sameFiles(a, b []os.FileInfo) bool {
	return slices.EqualFunc(a, b, func(a, b os.FileInfo) bool {
		if a == nil || b == nil {
			return a == b
		}
		return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
	})
}

// readAll reads the files; sum stands for what was read, or for the error.
func readAll(names []string) (contents [][]byte, sum [32]byte, err error) {
	h := sha256.New()
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, sha256.Sum256([]byte(err.Error())), err
		}
		contents = append(contents, b)
		fmt.Fprintf(h, "%d\n%s", len(b), b)
	}
	return contents, [32]byte(h.Sum(nil)), nil
}

func parsePair(contents [][]byte) (*tls.Certificate, error) {
	for _, b := range contents {
		if _, err := wholePEM(b); err != nil {
			return nil, err
		}
	}
	cert, err := tls.X509KeyPair(contents[0], contents[1])
	return &cert, err // the caller does not use it with an error
}

// setPairPEM is SetCertificate with the contents of two files.
func (t *TLSConfig) setPairPEM(cert, key []byte) error {
	pair, err := parsePair([][]byte{cert, key})
	if err == nil {
		t.SetCertificate(*pair)
	}
	return err
}

// setCAsPEM is SetRoots with the contents of a file.
func (t *TLSConfig) setCAsPEM(pem []byte) error {
	pool, err := parseCAs([][]byte{pem})
	if err == nil {
		t.SetRoots(func() (*x509.CertPool, error) { return pool, nil })
	}
	return err
}

func parseCAs(contents [][]byte) (*x509.CertPool, error) {
	blocks, err := wholePEM(contents[0])
	if err != nil {
		return nil, err
	}
	pool, n := x509.NewCertPool(), 0
	for _, b := range blocks {
		if b.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, err
		}
		pool.AddCert(cert)
		n++
	}
	if n == 0 {
		return nil, errors.New("it has no certificate")
	}
	return pool, nil
}

// wholePEM returns a file's blocks. The decoder passes over broken blocks, of
// which the last one of a half-written file is one; here they are an error.
func wholePEM(b []byte) (blocks []*pem.Block, err error) {
	begun := bytes.Count(b, []byte("-----BEGIN "))
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			break
		}
		blocks, b = append(blocks, block), rest
	}
	if len(blocks) != begun || bytes.HasPrefix(b, []byte("-")) || bytes.Contains(b, []byte("\n-")) {
		return nil, errors.New("a PEM block of it is broken off or malformed")
	}
	return blocks, nil
}
