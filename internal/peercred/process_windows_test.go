package peercred

import (
	"os"
	"os/exec"
	"sync"
	"testing"
)

func init() {
	if os.Getenv(childEnv) != "" {
		os.Stdin.Read(make([]byte, 1)) // until the test is over
		os.Exit(0)
	}
}

const childEnv = "PEERCRED_TEST_CHILD"

func TestAProcessIsAliveUntilItExits(t *testing.T) {
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childEnv+"=1")
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	p := processOf(0, child.Process.Pid)
	if self, err := os.Executable(); err != nil || p.Executable() != self || !p.Alive() {
		t.Errorf("alive %v, running %q, want %q (%v)", p.Alive(), p.Executable(), self, err)
	}
	closed := processOf(0, child.Process.Pid)
	var wg sync.WaitGroup
	for range 4 { // close comes in between
		wg.Go(func() {
			for closed.Alive() {
			}
		})
	}
	closed.Close()
	wg.Wait()
	if closed.Close(); closed.Alive() {
		t.Error("alive after Close")
	}
	stdin.Close()
	if err := child.Wait(); err != nil {
		t.Error(err)
	}
	if p.Alive() {
		t.Error("alive after its exit")
	}
	p.Close()
}
