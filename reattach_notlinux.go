//go:build !linux

package plugwire

import "os"

// signalIf sends a signal to a process that is no child of this one, and to its
// group if it leads one, if that is the right one. On Windows it stays that as
// long as there is a handle; elsewhere its number could become another's in between.
func signalIf(p *os.Process, right func() bool, sig sysSignal) {
	if right() {
		signalGroup(p, sig)
	}
}
