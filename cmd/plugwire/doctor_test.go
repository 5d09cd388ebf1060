package main

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == asPlugin { // the doctor's own plugin is this program
		main()
	}
	os.Exit(m.Run())
}

// patients are the plugins under testdata/plugins: a directory is a Go program, a
// file is executed as it is. Those with exitBroken are broken as their names say.
var patients = []struct {
	name   string
	args   string // of doctor, before the plugin
	status int
}{
	{"good", "", exitWell},
	{"own-group", "", exitWell},
	{"missing", "", exitBroken},
	{"not-executable", "", exitBroken},
	{"wrong-architecture", "", exitBroken},
	{"exits-at-once", "", exitBroken},
	{"panics", "", exitBroken},
	{"prints-nothing", "-start-timeout 300ms", exitBroken},
	{"prints-something-else", "", exitBroken},
	{"go-plugin", "", exitBroken},
	{"wrong-cookie", "", exitBroken},
	{"version-mismatch", "-versions 1,2", exitBroken},
	{"dead-address", "", exitBroken},
	{"drops-stdin", "", exitBroken},
	{"never-exits", "-exit-timeout 1s", exitBroken},
}

func TestDoctorNamesWhatIsBroken(t *testing.T) {
	needLinux(t)
	dir := t.TempDir()
	preparePatients(t, dir)
	t.Setenv("GOOD", filepath.Join(dir, "good"))
	for _, p := range patients {
		t.Run(p.name, func(t *testing.T) {
			args := append(strings.Fields(p.args), filepath.Join(dir, p.name))
			checkDoctor(t, p.name, dir, p.status, args...)
		})
	}
}

func TestDoctorWithoutAPluginTriesTheTransports(t *testing.T) {
	needLinux(t)
	checkDoctor(t, "transports", t.TempDir(), exitWell)
}

func needLinux(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the golden files have Linux's words and paths")
	}
}

// preparePatients puts every plugin in dir, ready to be executed.
func preparePatients(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir("testdata/plugins")
	if err != nil {
		t.Fatal(err)
	}
	build := []string{"build", "-buildvcs=false", "-o", dir}
	for _, e := range entries {
		if e.IsDir() {
			build = append(build, "./testdata/plugins/"+e.Name())
			continue
		}
		b, err := os.ReadFile("testdata/plugins/" + e.Name())
		if err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o755) // whatever the checkout has
		if e.Name() == "not-executable" {
			mode = 0o644
		}
		file := filepath.Join(dir, e.Name())
		if err := os.WriteFile(file, b, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("go", build...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// What differs from run to run, and what stands for it in the golden files.
var varying = []struct {
	re *regexp.Regexp
	by string
}{
	{regexp.MustCompile(`plugwire-[0-9a-z]{8,}(/[0-9a-z]{8}\b)?`), "plugwire-RANDOM"},
	{regexp.MustCompile(`\b(process|pid) \d+`), "$1 PID"},
	{regexp.MustCompile(`\b(uid|gid) \d+`), "$1 ID"},
	{regexp.MustCompile(`\b\d+(\.\d+)?(µs|ms|s)\b`), "TIME"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "127.0.0.1:PORT"},
	{regexp.MustCompile(`\+0x[0-9a-f]+`), "+0xPC"},
	{regexp.MustCompile(`\bthis system is linux/\w+`), "this system is linux/ARCH"},
}

// checkDoctor runs doctor and compares what it prints with a golden file.
func checkDoctor(t *testing.T, name, dir string, status int, args ...string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	got := run(t.Context(), append([]string{"doctor"}, args...), &stdout, &stderr)
	if got != status {
		t.Errorf("status %d, want %d", got, status)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer(dir, "DIR", here, "HERE", filepath.Clean(os.TempDir())+"/plugwire", "TMP/plugwire").Replace(stdout.String())
	for _, v := range varying {
		text = v.re.ReplaceAllString(text, v.by)
	}
	golden := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(golden, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("it prints\n%s\nwant (write it anew with -update)\n%s\nstderr:\n%s", text, want, stderr.String())
	}
}

func TestDoctorCalledWrongly(t *testing.T) {
	for _, row := range []struct {
		args   []string
		status int
		says   string
	}{
		{nil, exitUsage, "usage: "},
		{[]string{"nurse"}, exitUsage, "usage: "},
		{[]string{"doctor", "-versions", "one"}, exitUsage, `"one"`},
		{[]string{"doctor", "-what"}, exitUsage, "-what"},
		{[]string{"doctor", "-h"}, exitWell, "-cookie"},
	} {
		var stdout, stderr bytes.Buffer
		status := run(t.Context(), row.args, &stdout, &stderr)
		if status != row.status || !strings.Contains(stderr.String(), row.says) || stdout.Len() > 0 {
			t.Errorf("%q: status %d, %s%s", row.args, status, &stdout, &stderr)
		}
	}
}

// What the plugin says on its stderr is passed on and, with -v, the log is in its place.
func TestDoctorShowsTheLog(t *testing.T) {
	needLinux(t)
	for _, row := range []struct{ flag, says string }{
		{"-v=false", "cannot read /etc/greeter.conf\n"},
		{"-v", `level=WARN msg="plugwire: plugin start failed"`},
	} {
		var stdout, stderr bytes.Buffer
		status := run(t.Context(), []string{"doctor", row.flag, "/bin/sh", "testdata/plugins/exits-at-once"}, &stdout, &stderr)
		if status != exitBroken || !strings.Contains(stderr.String(), row.says) {
			t.Errorf("%s: status %d, stderr: %s", row.flag, status, &stderr)
		}
	}
}
