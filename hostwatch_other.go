//go:build !unix

package plugwire

// watchHost has nothing to do: on Windows the job ends with the host.
func watchHost(*launchOrder) {}

// outliveHost has nothing to do: who prints to nobody gets an error.
func outliveHost() {}

// awaitHostsEnd has nothing to wait for: this process ends no other.
func awaitHostsEnd(bool) {}
