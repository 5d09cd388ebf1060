//go:build unix

package plugwire

import (
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

func init() {
	// What inetd and systemd start: it answers on the socket that is its stdin.
	behaviours["service"] = func() {
		err := ServePlugin(testPluginMux(), &Config{Launch: LaunchConfig{StartTimeout: 50 * time.Millisecond}})
		if err != ErrNotPlugin {
			panic(err)
		}
		l, err := net.FileListener(os.Stdin)
		must(err)
		nc, err := l.Accept()
		if err != nil { // it does not listen
			nc, err = net.FileConn(os.Stdin)
		}
		must(err)
		_, err = io.Copy(nc, nc)
		must(err)
		must(nc.Close())
	}
	// An sshd that gives its commands sockets: first the half of what came, then the rest.
	children["sshd"] = func() {
		near, far, err := newSocketpair()
		must(err)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, launchVar+"=") }), childEnv+"=plugin")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = far, far, os.Stderr
		must(cmd.Start())
		far.Close()
		go func() {
			b := make([]byte, 40)
			_, err := io.ReadFull(os.Stdin, b)
			must(err)
			near.Write(b)
			time.Sleep(3 * stdinPoll)
			io.Copy(near, os.Stdin)
			near.(interface{ CloseWrite() error }).CloseWrite()
		}()
		io.Copy(os.Stdout, near)
		os.Stdout.Close()
		must(cmd.Wait())
	}
}

func TestStdioOverSockets(t *testing.T) {
	lt := newLaunchTest(t, "good")
	lt.cfg.Transports = []string{"stdio"}
	lt.cmd.Env = append(lt.cmd.Env, childEnv+"=sshd")
	p := lt.launch()
	lt.greets(p)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// TestSocketOnStdinStaysThatOfTheProgram: one that no host launched may be the
// service of inetd or of systemd.
func TestSocketOnStdinStaysThatOfTheProgram(t *testing.T) {
	for name, text := range map[string]string{
		"other":   "some text\nand more\n",
		"similar": launchVar + "\n" + launchVar + "=x\n",
		"short":   launchVar,
		"endless": launchVar + "=" + strings.Repeat("x", 3*maxLaunchLine),
	} {
		t.Run(name, func(t *testing.T) {
			near, far, err := newSocketpair()
			if err != nil {
				t.Fatal(err)
			}
			serviceEchoes(t, near, far, text)
		})
	}
	t.Run("listening", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		far, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		serviceEchoes(t, nc, far, "text")
	})
}

// serviceEchoes has a service run with a socket as its stdin, and talks to it.
func serviceEchoes(t *testing.T, nc net.Conn, stdin *os.File, text string) {
	t.Helper()
	defer nc.Close()
	lt := newLaunchTest(t, "service")
	lt.cmd.Stdin, lt.cmd.Stderr = stdin, os.Stderr
	err := lt.cmd.Start()
	stdin.Close()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		io.WriteString(nc, text)
		nc.(interface{ CloseWrite() error }).CloseWrite()
	}()
	if got, err := io.ReadAll(nc); err != nil || string(got) != text {
		t.Errorf("%.40q (%d bytes), %v", got, len(got), err)
	}
	if err := lt.cmd.Wait(); err != nil {
		t.Error(err)
	}
}
