package plugwire

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

func init() {
	mux := func() *Mux {
		m := testPluginMux()
		m.HandleFunc("environ", func(context.Context, []byte) ([]byte, error) {
			return []byte(strings.Join(os.Environ(), "\n")), nil
		})
		return m
	}
	behaviours["environ"] = func() { must(ServePlugin(mux(), nil)) }
}

func TestLaunchGivesThePluginItsEnvironment(t *testing.T) {
	t.Setenv("PLUGWIRE_TEST_A", "a")
	t.Setenv("PLUGWIRE_TEST_B", "b")
	needed := []string{childEnv, behaveEnv, pidEnv, "GORACE"} // what makes the test binary a plugin
	for name, row := range map[string]struct {
		inherit []string
		own     bool // the command has an Env
		a, b    bool // the plugin has these variables
	}{
		"all":           {nil, false, true, true},
		"some":          {append(needed, "PLUGWIRE_TEST_A", "PLUGWIRE_TEST_MISSING"), false, true, false},
		"the command's": {append(needed, "PLUGWIRE_TEST_A"), true, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			lt := newLaunchTest(t, "environ")
			env := lt.cmd.Env[len(lt.cmd.Env)-len(needed):]
			if lt.cmd.Env = nil; row.own {
				lt.cmd.Env = env
			} else {
				for _, v := range env {
					key, value, _ := strings.Cut(v, "=")
					t.Setenv(key, value)
				}
			}
			lt.cfg.Launch.InheritEnv = row.inherit
			reply, err := lt.launch().Call(t.Context(), "environ", nil)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Split(string(reply), "\n")
			if a, b := slices.Contains(got, "PLUGWIRE_TEST_A=a"), slices.Contains(got, "PLUGWIRE_TEST_B=b"); a != row.a || b != row.b {
				t.Errorf("%v, %v, want %v, %v", a, b, row.a, row.b)
			}
		})
	}
	for _, v := range launchEnviron(exec.Command("x"), &LaunchConfig{InheritEnv: []string{}}) {
		if !strings.HasPrefix(strings.ToUpper(v), "SYSTEMROOT=") { // which Windows needs
			t.Errorf("none, but %q", v)
		}
	}
}

// sumOf returns a file's SHA-256 in hexadecimal digits.
func sumOf(t *testing.T, path string) string {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func TestLaunchVerifiesTheProgram(t *testing.T) {
	right := sumOf(t, os.Args[0])
	wrong := strings.Repeat("0123456789abcdef", 4)
	for _, sum := range []string{right, strings.ToUpper(right)} {
		lt := newLaunchTest(t, "good")
		lt.cfg.Launch.SHA256 = sum
		p := lt.launch()
		lt.greets(p)
		p.Close()
	}
	for _, row := range []struct {
		sum  string
		code Code
		says []string
	}{
		{wrong, FailedPrecondition, []string{"starting the process", right, wrong}},
		{"abc", InvalidArgument, []string{"64 hexadecimal digits", `"abc"`}},
		{right + "00", InvalidArgument, []string{"64 hexadecimal digits"}},
	} {
		lt := newLaunchTest(t, "good")
		lt.cfg.Launch.SHA256 = row.sum
		_, err := Launch(t.Context(), lt.cmd, lt.cfg)
		checkLaunchError(t, err, row.code, row.says...)
		if _, err := os.Stat(lt.pid); err == nil {
			t.Errorf("%s: it ran", row.sum)
		}
	}
	lt := newLaunchTest(t, "good")
	lt.cfg.Launch.SHA256 = right
	lt.cmd.Path = t.TempDir()
	_, err := Launch(t.Context(), lt.cmd, lt.cfg)
	checkLaunchError(t, err, PermissionDenied, "no regular file")
	lt.cmd.Path = filepath.Join(lt.cmd.Path, "missing")
	_, err = Launch(t.Context(), lt.cmd, lt.cfg)
	checkLaunchError(t, err, NotFound, lt.cmd.Path)
}

// TestVerifiedProgramIsTheOneThatRuns: somebody puts another file in its place
// when it was read, and before it runs.
func TestVerifiedProgramIsTheOneThatRuns(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux executes an open file")
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho "+text+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, bad := write("good", "good"), write("bad", "bad")
	var out strings.Builder
	cmd := &exec.Cmd{Path: good, Stdout: &out, ExtraFiles: make([]*os.File, 1, 8)}
	extra := cmd.ExtraFiles[:2]
	exe, err := openVerified(cmd, sumOf(t, good))
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	if err := os.Rename(bad, good); err != nil {
		t.Fatal(err)
	}
	runOpened(cmd, exe)
	if err := cmd.Run(); err != nil || out.String() != "good\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	if extra[1] != nil {
		t.Error("the template's ExtraFiles were written to")
	}
}

// TestLaunchSaysWhyAProgramCannotStart has a row for each cause.
func TestLaunchSaysWhyAProgramCannotStart(t *testing.T) {
	if runtime.GOOS == "windows" || runtime.GOOS == "plan9" {
		t.Skip("the causes, or their errors, are others here")
	}
	dir := t.TempDir()
	file := func(name string, content []byte, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	elf := make([]byte, 64) // of a machine that nobody has
	copy(elf, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(elf[16:], 2)
	binary.LittleEndian.PutUint16(elf[18:], 0x1234)
	elfBig := slices.Clone(elf)
	elfBig[5] = 2
	binary.BigEndian.PutUint16(elfBig[18:], 22)
	machO := append([]byte("\xcf\xfa\xed\xfe\x0c\x00\x00\x01"), make([]byte, 60)...)
	pe := make([]byte, 128)
	copy(pe, "MZ")
	pe[60] = 64
	copy(pe[64:], "PE\x00\x00\x64\x86")
	this := fmt.Sprintf("; this system is %s/%s", runtime.GOOS, runtime.GOARCH)
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		path, dir string
		code      Code
		says      string
	}{
		{file("text", []byte("text"), 0o600), "", PermissionDenied, "it is not executable: chmod +x"},
		{dir, "", PermissionDenied, "it is a directory"},
		{filepath.Join(dir, "missing"), "", NotFound, "no such file"},
		{"./missing", dir, NotFound, "the path is relative to " + dir},
		{os.Args[0], filepath.Join(dir, "nowhere"), NotFound, "the command's Dir is missing: " + dir},
		{file("script", []byte("#!/no/such/interpreter -x\n"), 0o700), "", NotFound, `it is a script for "/no/such/interpreter -x"`},
		{file("plain", []byte("echo hello\n"), 0o700), "", FailedPrecondition, "it is no program, nor a script that begins with #!" + this},
		{file("empty", nil, 0o700), "", FailedPrecondition, "it is empty" + this},
		{file("elf", elf, 0o700), "", FailedPrecondition, "it is an ELF program for an architecture unknown here" + this},
		{file("elf-big", elfBig, 0o700), "", FailedPrecondition, "it is an ELF program for s390x" + this},
		{file("mach-o", machO, 0o700), "", FailedPrecondition, "it is a Mach-O program (macOS) for arm64" + this},
		{file("pe", pe, 0o700), "", FailedPrecondition, "it is a PE program (Windows) for amd64" + this},
		{filepath.Join(dir, strings.Repeat("x", 300)), "", Unavailable, "too long"},
	} {
		t.Run(filepath.Base(row.path)[:min(10, len(filepath.Base(row.path)))], func(t *testing.T) {
			lt := newLaunchTest(t, "")
			cmd := exec.Command(row.path)
			cmd.Dir = row.dir
			p, err := Launch(t.Context(), cmd, lt.cfg)
			if err == nil {
				p.Close()
				t.Fatal("it was launched")
			}
			if runtime.GOOS != "linux" && row.code == FailedPrecondition && CodeOf(err) != FailedPrecondition {
				t.Skipf("this system takes it for a program: %v", err)
			}
			checkLaunchError(t, err, row.code, "starting the process", row.says)
		})
	}
	t.Run("not in PATH", func(t *testing.T) {
		lt := newLaunchTest(t, "")
		_, err := Launch(t.Context(), exec.Command("plugwire-no-such-command"), lt.cfg)
		checkLaunchError(t, err, NotFound, "it is in no directory of PATH")
		if !errors.Is(err, exec.ErrNotFound) {
			t.Error(err)
		}
	})
	t.Run("socket path too long", func(t *testing.T) {
		if !slices.Contains(Transports(), "unix") {
			t.Skip("no Unix sockets here")
		}
		if runtime.GOOS == "linux" {
			t.Skip("any path will do on Linux")
		}
		lt := newLaunchTest(t, "good")
		lt.cfg.Transports = []string{"unix"}
		lt.cfg.Unix.Dir = filepath.Join(t.TempDir(), strings.Repeat("x", 120))
		if err := os.Mkdir(lt.cfg.Unix.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		_, err := Launch(t.Context(), lt.cmd, lt.cfg)
		checkLaunchError(t, err, Unavailable, "a socket address holds at most", "Unix.Dir")
	})
}
