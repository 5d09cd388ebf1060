//go:build !unix

package plugwire

// watchHost has nothing to do: on Windows the job ends with the host.
func watchHost(*launchOrder) {}

func closeOnExec(int) {}

// killOthers has nobody to kill: there are no groups.
func killOthers() {}

// outliveHost has nothing to do: who prints to nobody gets an error.
func outliveHost() {}

// awaitHostsEnd has nothing to wait for: this process ends no other.
func awaitHostsEnd(bool) {}
