package plugwire

import (
	"bytes"
	"os"
	"os/exec"
	"testing"
)

// Each new exported name is a decision: docs/api.txt records it.
func TestExportedSurface(t *testing.T) {
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("no go command: go doc -all . is not compared with docs/api.txt")
	}
	have, err := exec.Command(goTool, "doc", "-all", ".").Output()
	if err != nil {
		t.Fatalf("go doc -all .: %v", err)
	}
	want, err := os.ReadFile("docs/api.txt")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, want) {
		t.Error("docs/api.txt is not what go doc -all . prints; after looking at the difference: go doc -all . > docs/api.txt")
	}
}
