package plugwire

import (
	"os"
	"strconv"

	"golang.org/x/sys/windows"
)

// startedAt says when a process started, or os.ErrProcessDone when it has ended.
func startedAt(pid int) (string, error) {
	h, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION|windows.SYNCHRONIZE, false, uint32(pid))
	if err == windows.ERROR_INVALID_PARAMETER { // there is no such process
		return "", os.ErrProcessDone
	}
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
