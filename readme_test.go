package plugwire

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// buildReadme builds the README's plugin and host into a directory, as greeter
// and host.
func buildReadme(t *testing.T) (dir string) {
	t.Helper()
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("no go command")
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	// The programs are seen by the go command as if they were in this module.
	replace := make(map[string]string)
	for program, first := range map[string]string{"greeter": "```go\n// plugin\n", "host": "```go\n// host\n"} {
		_, code, ok := strings.Cut(string(readme), first)
		if code, _, _ = strings.Cut(code, "```\n"); !ok {
			t.Fatalf("the README has no block that begins with %q", first)
		}
		source := filepath.Join(dir, program+".go")
		writeFile(t, source, []byte(code))
		replace[filepath.Join(here, "readme", program, "main.go")] = source
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	writeFile(t, overlay, text)
	cmd := exec.Command(goTool, "build", "-buildvcs=false", "-ldflags=-s -w", "-overlay", overlay, "-o", dir, "./readme/greeter", "./readme/host")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir
}

// A host that is itself a plugin of hashicorp/go-plugin inherits variables that
// look like ours: nothing reads them.
func TestReadmeUnderGoPlugin(t *testing.T) {
	t.Parallel()
	if testing.Short() || runtime.GOOS == "windows" {
		t.Skip("builds two programs, named as on Unix")
	}
	dir := buildReadme(t)
	host := exec.Command(filepath.Join(dir, "host"))
	host.Dir = dir
	host.Env = append(os.Environ(), "PLUGIN_MIN_PORT=10000", "PLUGIN_MAX_PORT=25000", "PLUGIN_PROTOCOL_VERSIONS=1,2",
		"PLUGIN_CLIENT_CERT=-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", "PLUGIN_UNIX_SOCKET_GROUP=staff")
	out, err := host.CombinedOutput()
	if err != nil || string(out) != "hello, world <nil>\n" {
		t.Fatalf("%v: %s", err, out)
	}
}
