//go:build !unix

package plugwire

import (
	"os"
	"time"
)

// watchHost waits for the host's process, where that is possible, as on Windows.
func watchHost(order *launchOrder) {
	host, err := os.FindProcess(order.host)
	if err != nil || order.host == 0 {
		return
	}
	hostGone = make(chan struct{})
	go func() {
		if _, err := host.Wait(); err != nil {
			return
		}
		close(hostGone)
		time.Sleep(hostGrace)
		if self, err := os.FindProcess(os.Getpid()); err == nil {
			self.Kill()
		}
	}()
}

// outliveHost has nothing to do: who prints to nobody gets an error.
func outliveHost() {}

// awaitHostsEnd has nothing to wait for: this process ends no other.
func awaitHostsEnd(bool) {}
