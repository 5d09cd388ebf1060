package plugwire

import (
	"os"
	"strconv"

	"golang.org/x/sys/windows"
)

// startedAt says when a process started that has not ended.
func startedAt(pid int) (string, error) {
	h, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION|windows.SYNCHRONIZE, false, uint32(pid))
	if err != nil {
		return "", err
	}
	defer windows.CloseHandle(h)
	if e, err := windows.WaitForSingleObject(h, 0); err != nil || e == windows.WAIT_OBJECT_0 {
		return "", os.ErrProcessDone // a handle is left of it
	}
	var created, exited, kernel, user windows.Filetime
	if err := windows.GetProcessTimes(h, &created, &exited, &kernel, &user); err != nil {
		return "", err
	}
	return strconv.FormatInt(created.Nanoseconds(), 10), nil
}
