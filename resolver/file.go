package resolver

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/plugwire/plugwire"
)

const (
	defaultRefresh     = 10 * time.Second
	defaultFileRefresh = time.Second
	// maxFile bounds what is read of a file.
	maxFile = 1 << 20
	// recent is how new a file's time must be for a later change to possibly have
	// the same one.
	recent = 2 * time.Second
)

// File has the addresses in the file at path, one in each line: "tcp://10.0.0.5:7000",
// "unix:///run/app.sock". Empty lines and those that begin with # do not count. The
// file is looked at (by stat) once in Options.Refresh and read when it has changed,
// also when another was renamed or linked to its place, as with a ConfigMap of
// Kubernetes. A file that has a line which is no address changes nothing: it may be
// half written. Better rename a whole one into its place.
func File(path string, o *Options) plugwire.Resolver {
	return &fileResolver{path, o.withDefaults(defaultFileRefresh)}
}

type fileResolver struct {
	path string
	o    Options
}

func (f *fileResolver) Watch(ctx context.Context, update func(addrs []string)) error {
	w := &watchedFile{path: f.path} // of this Watch, which begins anew
	return (&polled{f.o, w.look}).Watch(ctx, update)
}

// A watchedFile is what is known of a file.
type watchedFile struct {
	path  string
	info  os.FileInfo // nil: not read yet
	fresh bool        // it was recent when it was read
	addrs []string
}

func (w *watchedFile) look(context.Context, *Options) ([]string, error) {
	info, err := os.Stat(w.path)
	if err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	if old := w.info; old != nil && !w.fresh && os.SameFile(old, info) && old.Size() == info.Size() && old.ModTime().Equal(info.ModTime()) {
		return w.addrs, nil
	}
	addrs, err := readAddresses(w.path)
	if err != nil {
		return nil, err
	}
	w.info, w.fresh, w.addrs = info, time.Since(info.ModTime()) < recent, addrs
	return addrs, nil
}

func readAddresses(path string) (addrs []string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("resolver: %w", err)
	case len(b) > maxFile:
		return nil, fmt.Errorf("resolver: %s: more than %d bytes", path, maxFile)
	}
	n := 0
	for line := range bytes.Lines(b) {
		n++
		addr := strings.TrimSpace(string(line))
		if addr == "" || strings.HasPrefix(addr, "#") {
			continue
		}
		if scheme, rest, ok := strings.Cut(addr, ":"); !ok || scheme == "" || rest == "" || strings.ContainsAny(addr, " \t") {
			return nil, fmt.Errorf("resolver: %s:%d: %q is no address, as unix:///path or tcp://host:port are", path, n, addr)
		}
		addrs = append(addrs, addr)
	}
	return addrs, nil
}
