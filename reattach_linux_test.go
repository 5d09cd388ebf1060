package plugwire

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func init() {
	// The first process of a namespace of pids, where it says which comes next.
	children["reuser"] = func() {
		start := func() *exec.Cmd {
			cmd := exec.Command("sleep", "1000")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			must(cmd.Start())
			return cmd
		}
		end := func(cmd *exec.Cmd, sig os.Signal) error {
			cmd.Process.Signal(sig)
			return cmd.Wait()
		}
		old := start()
		pid := old.Process.Pid
		handle, err := os.FindProcess(pid)
		must(err)
		var stranger *exec.Cmd
		signalIf(handle, func() bool {
			end(old, syscall.SIGKILL)
			for { // until no thread of this process gets the number
				if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
					fmt.Print("cannot: ", err)
					os.Exit(0)
				}
				if stranger = start(); stranger.Process.Pid == pid {
					return true
				}
				end(stranger, syscall.SIGKILL)
			}
		}, syscall.SIGKILL)
		fmt.Print(end(stranger, syscall.SIGTERM))
	}
}

// TestSignalReachesNoSuccessor: not even one that gets the number between the look and the signal.
func TestSignalReachesNoSuccessor(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=reuser")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	got, err := cmd.Output()
	if ended := (*exec.ExitError)(nil); err != nil && !errors.As(err, &ended) || strings.HasPrefix(string(got), "cannot") {
		t.Skip("no namespaces here: ", err, string(got))
	}
	if err != nil || string(got) != "signal: terminated" {
		t.Errorf("the stranger's end: %q, %v", got, err)
	}
}

func init() {
	waitingLaunches["ReattachedPluginIsKilledWithItsFamily"] = testReattachedPluginIsKilledWithItsFamily
}

func testReattachedPluginIsKilledWithItsFamily(t *testing.T) {
	lt := newParallelLaunchTest(t, "stubborn family")
	mark := rand.Text()
	lt.cmd.Env = append(lt.cmd.Env, familyEnv+"="+mark)
	a := lt.orphan(time.Minute, "unix")
	lt.cfg.Launch.ExitTimeout, lt.cfg.CloseTimeout = 100*time.Millisecond, 100*time.Millisecond
	p := lt.reattach(a)
	lt.greets(p)
	syscall.Kill(p.Pid(), syscall.SIGSTOP) // so that it does not end its family itself
	if err := p.Close(); err == nil || !strings.Contains(err.Error(), "had to be killed") {
		t.Error(err)
	}
	familyGone(t, mark)
}
