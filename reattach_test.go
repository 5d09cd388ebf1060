package plugwire

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
)

const (
	detachEnv = "PLUGWIRE_TEST_DETACH" // Config.Launch.Detach of the host, and the transport
	attachEnv = "PLUGWIRE_TEST_ATTACH" // the plugin that it reattaches to; "": it launches one
)

func init() {
	// A host that launches the plugin, says how to reattach to it, and waits.
	children["detaching host"] = func() {
		var cfg Config
		detach, transport, _ := strings.Cut(os.Getenv(detachEnv), ",")
		var err error
		cfg.Launch.Detach, err = time.ParseDuration(detach)
		must(err)
		cfg.Transports = []string{transport}
		cfg.Unix.Dir = os.Getenv("PLUGWIRE_TEST_DIR")
		cmd := childCommand("plugin")
		var p *Plugin
		if text := os.Getenv(attachEnv); text == "" {
			p, err = Launch(background, cmd, &cfg)
		} else {
			var a Attachment
			must(json.Unmarshal([]byte(text), &a))
			p, err = Reattach(background, a, &cfg)
		}
		must(err)
		a, err := p.Attachment()
		must(err)
		must(json.NewEncoder(os.Stdout).Encode(a))
		forever()
	}
}

// orphan returns the attachment of a plugin whose host is gone.
func (t *launchTest) orphan(detach time.Duration, transport string) Attachment {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("the descendants of a killed host end with it under go test")
	}
	host := exec.Command(os.Args[0])
	host.Env = append(t.cmd.Env, childEnv+"=detaching host", detachEnv+"="+detach.String()+","+transport, "PLUGWIRE_TEST_DIR="+t.cfg.Unix.Dir)
	host.Stderr = os.Stderr
	stdout, err := host.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	host.Process.Kill()
	host.Wait()
	if err != nil {
		t.Fatal(err)
	}
	var a Attachment
	if err := json.Unmarshal(line, &a); err != nil {
		t.Fatal(err)
	}
	t.grandchild = true
	t.cfg.Transports = []string{transport}
	return a
}

func (t *launchTest) reattach(a Attachment) *Plugin {
	t.Helper()
	p, err := Reattach(t.Context(), a, t.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestReattach(t *testing.T) {
	for _, transport := range Transports() {
		t.Run(transport, func(t *testing.T) {
			plainOnly(t)
			lt := newLaunchTest(t, "good")
			a := lt.orphan(time.Minute, transport)
			if (a.Pin != "") != (transport == "tcp" && builtWithTLS) {
				t.Errorf("%+v", a)
			}
			p := lt.reattach(a)
			lt.greets(p)
			if _, err := p.Call(t.Context(), "print", nil); err != nil { // to nobody
				t.Fatal(err)
			}
			if p.Pid() != a.Pid || p.Selection().Chosen != transport {
				t.Errorf("pid %d, %v", p.Pid(), p.Selection())
			}
			if again, err := p.Attachment(); err != nil || again.Secret != a.Secret || again.Address != a.Address {
				t.Errorf("%v, %v", again, err)
			}
			if err := p.Swap(t.Context(), nil); CodeOf(err) != InvalidArgument {
				t.Errorf("Swap without a command: %v", err)
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func init() { waitingLaunches["ReattachASecondHost"] = testReattachASecondHost }

// One host is enough. It takes the other a second to hear that.
func testReattachASecondHost(t *testing.T) {
	lt := newParallelLaunchTest(t, "good")
	a := lt.orphan(time.Minute, Transports()[0])
	p := lt.reattach(a)
	lt.greets(p)
	if _, err := Reattach(t.Context(), a, lt.cfg); CodeOf(err) != FailedPrecondition || !strings.Contains(err.Error(), "has a host") {
		t.Errorf("a second host: %v", err)
	}
	lt.greets(p)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// TestReattachAgainAndAgain: each host finds the plugin that the last one left.
func TestReattachAgainAndAgain(t *testing.T) {
	lt := newLaunchTest(t, "good")
	a := lt.orphan(time.Minute, Transports()[0])
	text, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	lt.cmd.Env = append(lt.cmd.Env, attachEnv+"="+string(text))
	for range 5 {
		if again := lt.orphan(time.Minute, Transports()[0]); again.Pid != a.Pid || again.Secret != a.Secret {
			t.Fatalf("%v after %v", again, a)
		}
	}
	p := lt.reattach(a)
	lt.greets(p)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestDetachedPluginEndsByItself(t *testing.T) {
	t.Run("when nobody comes", func(t *testing.T) {
		lt := newLaunchTest(t, "good")
		a := lt.orphan(50*time.Millisecond, Transports()[0])
		eventually(t, func() bool { return !lt.alive() })
		if _, err := Reattach(t.Context(), a, lt.cfg); CodeOf(err) != NotFound {
			t.Fatal(err)
		}
		if d, err := newPrivateDir(lt.cfg.Unix.Dir); err == nil { // as the next host does, which sweeps what is left
			d.remove()
		}
	})
	t.Run("when its host has ended it", func(t *testing.T) {
		lt := newLaunchTest(t, "good")
		lt.cfg.Launch.Detach = time.Hour
		p := lt.launch()
		start := time.Now()
		if err := p.Close(); err != nil || time.Since(start) > p.cfg.Launch.TermTimeout {
			t.Fatalf("%v after %v", err, time.Since(start))
		}
	})
}

func TestReattachToAStranger(t *testing.T) {
	lt := newLaunchTest(t, "good")
	a := lt.orphan(time.Minute, Transports()[0])
	stranger := childCommand("stranger")
	stdin, _ := startChild(t, stranger)
	for { // until it has not started in the same hundredth of a second, which is how fine some systems tell it
		if at, err := startedAt(stranger.Process.Pid); err != nil || at != a.Started {
			break
		}
		stdin.Close()
		stranger.Wait()
		stranger = childCommand("stranger")
		stdin, _ = startChild(t, stranger)
	}
	for name, bad := range map[string]Attachment{
		"another process of that number": {Address: a.Address, Secret: a.Secret, Started: a.Started, Pid: stranger.Process.Pid},
		"started at another time":        {Address: a.Address, Secret: a.Secret, Started: "0@" + a.Started, Pid: a.Pid},
	} {
		if _, err := Reattach(t.Context(), bad, lt.cfg); CodeOf(err) != NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	if now, err := startedAt(stranger.Process.Pid); err == nil { // it is the stranger that is named
		bad := Attachment{Address: a.Address, Secret: a.Secret, Started: now, Pid: stranger.Process.Pid}
		if _, err := Reattach(t.Context(), bad, lt.cfg); CodeOf(err) != PermissionDenied {
			t.Error(err)
		}
	}
	bad := a
	bad.Secret = strings.Repeat("00", len(secret{}))
	if _, err := Reattach(t.Context(), bad, lt.cfg); CodeOf(err) != Unauthenticated {
		t.Error(err)
	}
	bad.Secret = "short"
	if _, err := Reattach(t.Context(), bad, lt.cfg); CodeOf(err) != InvalidArgument {
		t.Error(err)
	}
	p := lt.reattach(a)
	lt.greets(p)
	p.Close()
	stdin.Close()
	if err := stranger.Wait(); err != nil {
		t.Errorf("the stranger was ended: %v", err)
	}
}

func init() {
	children["stranger"] = func() { os.Stdin.Read(make([]byte, 1)) }
}

func TestAttachmentNeedsDetach(t *testing.T) {
	lt := newLaunchTest(t, "good")
	p := lt.launch()
	if _, err := p.Attachment(); CodeOf(err) != FailedPrecondition || !strings.Contains(err.Error(), "Config.Launch.Detach") {
		t.Fatal(err)
	}
}

func TestAttachmentShowsNoSecret(t *testing.T) {
	a := Attachment{Address: "unix:///x", Pid: 7, Secret: "s3cr3t", Key: []byte("k3y"), Pin: "p1n"}
	var b strings.Builder
	log := slog.New(slog.NewJSONHandler(&b, nil))
	log.Info("attached", "to", a)
	for _, text := range []string{fmt.Sprint(a), fmt.Sprintf("%+v %#v %s", a, a, &a), b.String()} {
		if strings.Contains(text, "s3cr3t") || strings.Contains(text, "k3y") || strings.Contains(text, "[107 51 121]") || !strings.Contains(text, "unix:///x") {
			t.Error(text)
		}
	}
}
