package plugwire

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
)

// children are the roles that the test binary plays when a test starts it as
// another process: childEnv names one. Test files add theirs in init.
var children = map[string]func(){}

const childEnv = "PLUGWIRE_TEST_CHILD"

// longTests has tests do as much as a release must show: see scripts/long.
var longTests = os.Getenv("PLUGWIRE_LONG") != ""

// afterTests run when all tests and benchmarks are done.
var afterTests []func()

// childCommand returns a command that runs the test binary in a role, with more
// variables in its environment. The race detector's second at every exit is not
// for children.
func childCommand(role string, env ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), childEnv+"="+role, "GORACE=atexit_sleep_ms=0"), env...)
	return cmd
}

// startChild starts a command, has its stderr on ours, and returns what writes to
// its stdin and what reads its stdout.
func startChild(t testing.TB, cmd *exec.Cmd) (stdin io.WriteCloser, stdout *bufio.Reader) {
	t.Helper()
	cmd.Stderr = os.Stderr
	stdin, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	return stdin, bufio.NewReader(out)
}

func TestMain(m *testing.M) {
	if role := os.Getenv(childEnv); role != "" {
		run := children[role]
		if run == nil {
			fmt.Fprintf(os.Stderr, "no such child: %s\n", role)
			os.Exit(2)
		}
		run()
		os.Exit(0)
	}
	flag.Parse()
	setParallel()
	if r, w, err := os.Pipe(); err == nil { // the runtime's poller, whose descriptors stay
		r.Close()
		w.Close()
	}
	before := openDescriptors()
	code := m.Run()
	for _, f := range afterTests {
		f()
	}
	if code == 0 {
		if leak := leaks(before); leak != "" {
			fmt.Fprintln(os.Stderr, leak)
			code = 1
		}
	}
	os.Exit(code)
}

// setParallel has more tests run in parallel than there are processors, as those
// that do wait for the most part, but one at a time where figures count. It leaves
// alone what the command line says, and fuzzing, where the flag has another meaning.
func setParallel() {
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" || f.Name == "test.fuzz" })
	switch {
	case given:
	case longTests:
		flag.Set("test.parallel", "1")
	default:
		flag.Set("test.parallel", "8")
	}
}

// leaks waits for goroutines and descriptors that tests left behind to end, and
// describes those that do not. Only goroutines with this module's code on their
// stack count; the process-wide ticker may stay.
func leaks(before int) string {
	var report string
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		buf := make([]byte, 4<<20)
		buf = buf[:runtime.Stack(buf, true)]
		report = ""
		for g := range strings.SplitSeq(string(buf), "\n\n") {
			if strings.Contains(g, "plugwire/plugwire") && !strings.Contains(g, "plugwire.TestMain") {
				report += g + "\n\n"
			}
		}
		if report != "" {
			report = "leaked goroutines:\n\n" + report
		} else if now := openDescriptors(); now > before {
			report = fmt.Sprintf("leaked descriptors: %d before the tests, %d after", before, now)
		}
		if report == "" || time.Now().After(deadline) {
			return report
		}
	}
}

// openDescriptors counts this process's open descriptors, or returns 0 where it
// cannot. The monitor's timer does not count: it goes away some time after the
// last connection has become quiet, with the monitor's goroutine.
func openDescriptors() int {
	if runtime.GOOS == "windows" { // under Wine there is a /proc, of another system
		return 0
	}
	if entries, err := os.ReadDir("/proc/self/fd"); err == nil {
		n := 0
		for _, e := range entries { // one of which was for reading them
			if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && to != "anon_inode:[timerfd]" {
				n++
			}
		}
		return n
	}
	entries, _ := os.ReadDir("/dev/fd")
	return len(entries)
}
