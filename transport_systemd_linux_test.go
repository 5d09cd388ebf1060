package plugwire

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// The kernel shows a dialler as its server whoever called listen.
func TestActivatedServerIsWhoMadeItsSocket(t *testing.T) {
	dir := socketDir(t)
	path := filepath.Join(dir, "x.sock")
	files, uris := passed(t, "unix:"+path)
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(path, 0o666)); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can start a service as another user")
	}
	lines, _ := activate(t, "systemd:", "", files, fmt.Sprint(childUIDEnv, "=", nobody))
	saysWhy(t, lines, "is "+uris[0], nothingLeft)
	var server net.Conn
	asNobody(t, func() error {
		refused, err := unixTransport{}.Dial(t.Context(), uris[0], new(Config).withDefaults())
		if err == nil {
			refused.Close()
		}
		wantError(t, err, PermissionDenied, "dial", uris[0], "the socket "+path+" belongs to uid 0; allowed is uid 65534",
			"add it to Config.Unix.ServerUIDs")
		server, err = unixTransport{}.Dial(t.Context(), uris[0], (&Config{Unix: UnixConfig{ServerUIDs: []int{0}}}).withDefaults())
		return err
	})
	var seen *Peer
	c, err := NewConn(t.Context(), server, &Config{Authorize: func(p *Peer) error { seen = p; return nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if seen.UID != 0 || seen.PID != os.Getpid() { // this process made the socket
		t.Errorf("the server is %v", seen)
	}
	if reply, err := c.Call(t.Context(), "echo", []byte("hi")); err != nil || string(reply) != "hi" {
		t.Errorf("%q, %v", reply, err)
	}
}
