//go:build unix && (!linux || android || race || msan || asan)

package sockio

// canUntold says that some calls are untold, and that flow therefore is needed.
const canUntold = false

// There are no such calls, or a process may be killed for them (Android), or the
// sanitizers have to see them: they learn from them what was read, and what happened
// before what.

func writeUntold(uintptr, []byte) (int, error) { return 0, errTell }

func readUntold(uintptr, []byte) (int, error) { return 0, errTell }
