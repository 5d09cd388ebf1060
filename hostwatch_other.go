//go:build !unix

package plugwire

// watchHost has nothing to do: on Windows the job ends with the host.
func watchHost(*launchOrder) {}

// awaitHostsEnd has nothing to wait for: this process ends no other.
func awaitHostsEnd(bool) {}
