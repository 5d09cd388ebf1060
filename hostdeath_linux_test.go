package plugwire

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// These tests kill hosts. Everybody in a test's family has familyEnv in the
// environment, by which /proc finds who is left.
const (
	familyEnv = "PLUGWIRE_TEST_FAMILY"
	hostDir   = "PLUGWIRE_TEST_DIR"  // the host's Config.Unix.Dir
	hostDoes  = "PLUGWIRE_TEST_HOST" // what the host does beside being there
)

func init() {
	children["host"] = hostToKill
	behaviours["family"] = func() {
		startFamily()
		must(ServePlugin(testPluginMux(), nil))
	}
	behaviours["busy family"] = func() { // and then it does not end
		startFamily()
		for range 4 * runtime.GOMAXPROCS(0) {
			go func() {
				for n := 0; ; n++ {
				}
			}()
		}
		ServePlugin(testPluginMux(), nil)
		forever()
	}
	behaviours["chatty family"] = func() { // each line of which would be its last
		startFamily()
		go func() {
			for {
				fmt.Fprintln(os.Stderr, "still here")
			}
		}()
		must(ServePlugin(testPluginMux(), nil))
	}
}

// startFamily starts a process that sleeps, and one that ignores SIGTERM with
// a child of its own.
func startFamily() {
	must(exec.Command("sleep", "1000").Start())
	must(exec.Command("/bin/sh", "-c", `trap "" TERM; sleep 1000; sleep 1000`).Start())
}

// hostToKill launches a plugin, and does not end.
func hostToKill() {
	cmd := exec.Command(os.Args[0])
	switch os.Getenv(hostDoes) {
	case "wrap":
		cmd = exec.Command("/bin/sh", "-c", `"$0"; exit $?`, os.Args[0])
	case "stranger": // which knows nothing of hosts
		cmd = exec.Command("sleep", "1000")
	}
	cmd.Env = append(os.Environ(), childEnv+"=plugin", "GORACE=atexit_sleep_ms=0")
	cfg := &Config{Unix: UnixConfig{Dir: os.Getenv(hostDir)}}
	if does := os.Getenv(hostDoes); does == "start" || does == "stranger" {
		fmt.Println("0")
	}
	p, err := Launch(context.Background(), cmd, cfg)
	must(err)
	if os.Getenv(hostDoes) == "load" {
		for range 4 {
			go func() {
				for {
					_, err := p.Call(context.Background(), "greet", []byte("world"))
					must(err)
				}
			}()
		}
	}
	_, err = p.Call(context.Background(), "greet", nil)
	must(err)
	fmt.Println(p.Pid())
	if os.Getenv(hostDoes) == "close" {
		p.Close()
	}
	forever()
}

// family returns the processes that have the mark, with what they are.
func family(mark string) (members []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, file := range files {
		if env, err := os.ReadFile(file); err == nil && bytes.Contains(env, []byte(familyEnv+"="+mark)) {
			line, _ := os.ReadFile(filepath.Dir(file) + "/cmdline")
			members = append(members, strings.Split(file, "/")[2]+" "+string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
		}
	}
	return members
}

// familyGone waits until nobody has the mark, and returns since when. A process
// has no environment while it executes a program, and the list is not read at
// once: several looks must find nobody.
func familyGone(t *testing.T, mark string) (since time.Time) {
	t.Helper()
	for start, clean := time.Now(), 0; clean < 5; time.Sleep(2 * time.Millisecond) {
		at := time.Now()
		members := family(mark)
		switch {
		case len(members) > 0 && time.Since(start) > 10*time.Second:
			for _, m := range members {
				killFamilyMember(m)
			}
			t.Errorf("left behind: %q", members)
			return at
		case len(members) > 0:
			clean = 0
			continue
		case clean == 0:
			since = at
		}
		clean++
	}
	return since
}

func killFamilyMember(m string) {
	text, _, _ := strings.Cut(m, " ")
	if pid, err := strconv.Atoi(text); err == nil {
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

// startHost starts a host, and returns when it says so, with the plugin's number.
func startHost(t *testing.T, dir, does, behaviour string) (host *exec.Cmd, mark string, plugin int) {
	t.Helper()
	mark = rand.Text()
	host = childCommand("host", hostDoes+"="+does, hostDir+"="+dir, behaveEnv+"="+behaviour, familyEnv+"="+mark)
	host.Stderr = os.Stderr
	stdout, err := host.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err == nil {
		plugin, err = strconv.Atoi(strings.TrimSpace(line))
	}
	if err != nil {
		host.Process.Kill()
		host.Wait()
		t.Fatalf("the host said %q: %v", line, err)
	}
	return host, mark, plugin
}

// hostTempDir is a short one, of which nothing is checked.
func hostTempDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "pw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestT22PluginAndGrandchildrenEndWithAKilledHost(t *testing.T) {
	if _, err := os.Stat("/bin/sh"); err != nil {
		t.Skip("no shell here:", err)
	}
	for _, row := range []struct{ name, does, behaviour string }{
		{"idle", "", "family"},
		{"under load", "load", "family"},
		{"during start", "start", "family"},
		{"busy", "", "busy family"},
		{"printing", "load", "chatty family"},
		{"stopped", "", "family"},
		{"behind a wrapper", "wrap", "family"},
		{"behind a wrapper and busy", "wrap", "busy family"},
		{"while it is being closed", "close", "busy family"},
		{"that is no plugin", "stranger", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			dir := hostTempDir(t)
			var worst time.Duration
			runs := longRun(1, 100)
			for range runs {
				host, mark, plugin := startHost(t, dir, row.does, row.behaviour)
				if row.does == "stranger" {
					eventually(t, func() bool { return strings.Contains(fmt.Sprint(family(mark)), "sleep") })
				}
				if row.does == "start" {
					time.Sleep(time.Duration(mathrand.IntN(30_000)) * time.Microsecond) // any moment will do
				}
				if row.name == "stopped" {
					if err := syscall.Kill(plugin, syscall.SIGSTOP); err != nil {
						t.Fatal(err)
					}
				}
				killed := time.Now()
				host.Process.Kill()
				host.Wait()
				took := familyGone(t, mark).Sub(killed)
				worst = max(worst, took)
				if took > 5*time.Second { // a second on a machine that has time
					t.Errorf("gone after %v", took)
				}
			}
			if left := sweepAgain(t, dir); len(left) > 0 {
				t.Errorf("the next host does not remove %q", left)
			}
			t.Logf("gone after at most %v", worst)
		})
	}
}

// Somebody else has the other end of the plugin's stdin, which then does not end.
func TestT22PluginEndsWithAHostWhosePipeIsHeld(t *testing.T) {
	host, mark, plugin := startHost(t, hostTempDir(t), "", "busy family")
	held, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/0", plugin), os.O_WRONLY, 0)
	if err != nil {
		t.Error(err)
	}
	defer held.Close()
	killed := time.Now()
	host.Process.Kill()
	host.Wait()
	if took := familyGone(t, mark).Sub(killed); took > 5*time.Second {
		t.Errorf("gone after %v", took)
	}
}

// The kernel takes the thread that started a process for its parent. A wrapper
// alone is still subject to that when it runs.
func TestT22PluginOutlivesTheThreadThatLaunchedIt(t *testing.T) {
	lt := newLaunchTest(t, "good")
	lt.cmd.Path, lt.cmd.Args = "/bin/sh", []string{"/bin/sh", "-c", `"$0"; exit $?`, lt.cmd.Path}
	lt.grandchild = true
	if _, err := os.Stat(lt.cmd.Path); err != nil {
		t.Skip("no shell here:", err)
	}
	type launched struct {
		p   *Plugin
		err error
		tid int
	}
	c := make(chan launched)
	launchedOne := make(chan struct{})
	defer close(launchedOne)
	var launch func()
	launch = func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() { // the main thread never ends: it is kept from the next goroutine
			go launch()
			<-launchedOne
			runtime.UnlockOSThread()
			return
		}
		p, err := Launch(t.Context(), lt.cmd, lt.cfg)
		c <- launched{p, err, unix.Gettid()} // the thread, which is not unlocked, ends with the goroutine
	}
	go launch()
	l := <-c
	if l.err != nil {
		t.Fatal(l.err)
	}
	defer l.p.Close()
	eventually(t, func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", l.tid))
		return err != nil
	})
	if closedWithin(l.p.done, 100*time.Millisecond) {
		t.Fatal("the plugin has ended: ", l.p.Wait())
	}
	lt.greets(l.p)
}
