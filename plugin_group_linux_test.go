package plugwire

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	behaviours["stubborn family"] = func() { // until killed
		startFamily()
		must(ServePlugin(testPluginMux(), nil))
		forever()
	}
	behaviours["escaped grandchild"] = func() { // holds stdout and stderr, and is out of reach
		cmd := exec.Command("sleep", "1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		must(cmd.Start())
		must(ServePlugin(testPluginMux(), nil))
	}
}

// Its sleeper and the one that ignores SIGTERM, with a child of its own.
func TestT23GrandchildrenEndWithThePlugin(t *testing.T) {
	leavesNoDescriptors(t)
	for _, row := range []struct {
		name, behaviour string
		end             func(p *Plugin)
	}{
		{"that is closed", "family", func(p *Plugin) { p.Close() }},
		{"that does not exit", "stubborn family", func(p *Plugin) { p.Close() }},
		{"that exits by itself", "family", func(p *Plugin) { p.Call(context.Background(), "exit", []byte("0")); p.Wait() }},
		{"that is killed", "family", func(p *Plugin) { syscall.Kill(p.Pid(), syscall.SIGKILL); p.Wait() }},
		{"in a session of its own", "family", func(p *Plugin) { p.Close() }},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			lt := newParallelLaunchTest(t, row.behaviour)
			if strings.Contains(row.name, "session") {
				lt.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			}
			mark := rand.Text()
			lt.cmd.Env = append(lt.cmd.Env, familyEnv+"="+mark)
			lt.cfg.Launch.ExitTimeout = 400 * time.Millisecond
			p := lt.launch()
			lt.greets(p)
			if n := len(family(mark)); n < 3 {
				t.Fatalf("%d processes", n)
			}
			start := time.Now()
			row.end(p)
			ended := time.Now()
			if took := familyGone(t, mark).Sub(ended); took > time.Second {
				t.Errorf("gone after %v", took)
			}
			t.Logf("ended after %v", ended.Sub(start))
		})
	}
}

func init() {
	waitingLaunches["GrandchildOutOfReachDoesNotHoldUpClose"] = testGrandchildOutOfReachDoesNotHoldUpClose
}

// What it has started and got out of the group is its own affair, but must not
// hold up the end.
func testGrandchildOutOfReachDoesNotHoldUpClose(t *testing.T) {
	lt := newParallelLaunchTest(t, "escaped grandchild")
	mark := rand.Text()
	lt.cmd.Env = append(lt.cmd.Env, familyEnv+"="+mark)
	lt.cfg.Launch.WaitDelay = 700 * time.Millisecond // which is not the default
	p := lt.launch()
	lt.greets(p)
	start := time.Now()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took < lt.cfg.Launch.WaitDelay || took > lt.cfg.Launch.WaitDelay+2*time.Second {
		t.Errorf("Close took %v", took)
	}
	if len(family(mark)) != 1 {
		t.Errorf("left: %q", family(mark))
	}
	for _, m := range family(mark) {
		killFamilyMember(m)
	}
	familyGone(t, mark)
}

func init() { waitingLaunches["TermTimeoutSetsWhenSIGTERMComes"] = testTermTimeoutSetsWhenSIGTERMComes }

func testTermTimeoutSetsWhenSIGTERMComes(t *testing.T) {
	lt := newParallelLaunchTest(t, "lingers")
	// What comes while ServePlugin still runs ends that, and not the process.
	lt.cfg.Launch.ExitTimeout, lt.cfg.Launch.TermTimeout = time.Minute, 500*time.Millisecond
	start := time.Now()
	if err := lt.launch().Close(); err == nil || !strings.Contains(err.Error(), "terminated") {
		t.Error(err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("Close took %v", took)
	}
}

// TestDetachedFamilyEnds: what a detached plugin has started ends with it, also when no
// host has started it.
func TestDetachedFamilyEnds(t *testing.T) {
	for _, how := range []string{"closed", "nobody comes"} {
		t.Run(how, func(t *testing.T) {
			lt := newLaunchTest(t, "family")
			mark := rand.Text()
			lt.cmd.Env = append(lt.cmd.Env, familyEnv+"="+mark)
			detach := time.Minute
			if how == "nobody comes" {
				detach = 50 * time.Millisecond
			}
			a := lt.orphan(detach, Transports()[0])
			if how == "closed" {
				p := lt.reattach(a)
				if err := p.Close(); err != nil || p.Pid() != a.Pid {
					t.Errorf("%v, pid %d", err, p.Pid())
				}
			}
			familyGone(t, mark)
			if d, err := newPrivateDir(lt.cfg.Unix.Dir); err == nil { // which sweeps what is left
				d.remove()
			}
		})
	}
}

func init() {
	behaviours["shows descriptor"] = func() {
		flags, err := unix.FcntlInt(3, unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			must(fmt.Errorf("descriptor 3 has the flags %d, %v", flags, err))
		}
		must(ServePlugin(testPluginMux(), &Config{Transports: []string{"unix", "socketpair"}}))
	}
}

// TestSocketpairIsNotPassedOnFurther: what the plugin starts does not get its end of
// the connection, before ServePlugin has taken it either, and what is not used is closed.
func TestSocketpairIsNotPassedOnFurther(t *testing.T) {
	lt := newLaunchTest(t, "shows descriptor")
	lt.cfg.Transports = []string{"socketpair"}
	lt.greets(lt.launch())
	lt = newLaunchTest(t, "only tcp")
	lt.cfg.Transports = []string{"socketpair", "tcp"}
	p := lt.launch()
	lt.greets(p)
	if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/3", p.Pid())); err == nil && strings.HasPrefix(to, "socket:") {
		info, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/unix", p.Pid()))
		if err != nil || strings.Contains(string(info), strings.Trim(to, "socket:[]")) {
			t.Errorf("descriptor 3 is %s still", to)
		}
	}
}
