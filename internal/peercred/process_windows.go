package peercred

import (
	"os"

	"golang.org/x/sys/windows"
)

// processOf opens the process by its number, which it keeps as long as it is
// open. If the peer has exited since it connected, and the number was given away
// again, this is the wrong one. Who may not open it, as that of another user,
// has nothing to hold it by.
func processOf(_ uintptr, pid int) *Process {
	h, err := windows.OpenProcess(windows.SYNCHRONIZE|windows.PROCESS_QUERY_LIMITED_INFORMATION, false, uint32(pid))
	if err != nil {
		return nil
	}
	p := &Process{f: os.NewFile(uintptr(h), "process")}
	path := make([]uint16, windows.MAX_LONG_PATH)
	n := uint32(len(path))
	if err := windows.QueryFullProcessImageName(h, 0, &path[0], &n); err == nil && p.Alive() {
		p.executable = windows.UTF16ToString(path[:n])
	}
	return p
}

// isAlive asks whether a process has exited, without waiting for it.
func isAlive(process uintptr) bool {
	event, err := windows.WaitForSingleObject(windows.Handle(process), 0)
	return err == nil && event == uint32(windows.WAIT_TIMEOUT)
}
