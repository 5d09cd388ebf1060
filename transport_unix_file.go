//go:build unix

package plugwire

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
)

// This file looks at what there is at a path, and names what the kernel knows by
// another name.

// A socketFile is what there is at a path, by whatever name it is known.
type socketFile struct {
	file, dir fs.FileInfo // of the last place itself, and of where a link in the place before it leads
	at        string      // connecting there connects to this file; not after close
	close     func()
}

// checkOwners refuses the socket of a user who may not be the server, and one in
// a directory whose owner could have put it there. That others may write to the
// directory is no reason: of what they put there they are the owners.
func (f *socketFile) checkOwners(addr, path string, cfg *Config) error {
	servers := append([]int{os.Geteuid()}, cfg.Unix.ServerUIDs...)
	check := func(what, path string, fi fs.FileInfo, allowed []int) error {
		owner := ownerOf(fi)
		if contains(allowed, owner) {
			return nil
		}
		return &Error{Code: PermissionDenied, Op: "dial", Addr: addr,
			Message: fmt.Sprintf("the %s %s belongs to uid %d; allowed is uid %s", what, path, owner, orList(allowed)),
			Hint:    fmt.Sprintf("if uid %d may run this server, add it to Config.Unix.ServerUIDs", owner)}
	}
	if err := check("socket", path, f.file, servers); err != nil {
		return err
	}
	dir, _ := splitPath(path)
	return check("directory", dir, f.dir, append(servers, 0))
}

// orList writes ids as "0, 1 or 2", each once.
func orList(ids []int) string {
	var b strings.Builder
	slices.Sort(ids)
	ids = slices.Compact(ids)
	for i, id := range ids {
		switch {
		case i > 0 && i == len(ids)-1:
			b.WriteString(" or ")
		case i > 0:
			b.WriteString(", ")
		}
		fmt.Fprint(&b, id)
	}
	return b.String()
}

// ownerOf returns the uid of a file's owner, or -1.
func ownerOf(fi fs.FileInfo) int {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

// isOurs reports whether a file's owner is who this process acts as.
func isOurs(fi fs.FileInfo) bool { return ownerOf(fi) == os.Geteuid() }

// splitPath cuts an absolute path before its last place, and nothing else:
// package filepath would resolve "..", without regard to symbolic links.
func splitPath(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/') + 1
	if i == len(path) {
		return path, "." // of a path that ends with a slash
	}
	return path[:i], path[i:]
}

// procFD is the directory in which a Linux process finds its open files.
const procFD = "/proc/self/fd/"

// namedConn is a connection of a socket whose path does not fit a socket
// address, so that the kernel knows it by another name.
type namedConn struct {
	*net.UnixConn
	local, remote net.Addr
}

func (c *namedConn) LocalAddr() net.Addr  { return c.local }
func (c *namedConn) RemoteAddr() net.Addr { return c.remote }

// named returns a connection of the socket at path, which is c itself unless the
// kernel has another name for it.
func named(c *net.UnixConn, path string) net.Conn {
	local, remote := c.LocalAddr(), c.RemoteAddr()
	if l, r := realAddr(local, path), realAddr(remote, path); l != local || r != remote {
		return &namedConn{c, l, r}
	}
	return c
}

// realAddr puts path in the place of the name that a long one was bound by.
func realAddr(a net.Addr, path string) net.Addr {
	if strings.HasPrefix(a.String(), procFD) {
		return &net.UnixAddr{Name: path, Net: "unix"}
	}
	return a
}
