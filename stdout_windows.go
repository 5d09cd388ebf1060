package plugwire

import (
	"os"

	"golang.org/x/sys/windows"
)

// What has taken the old handle before goes on writing to it, and the host
// reads it.
func stdoutToStderr() {
	windows.SetStdHandle(windows.STD_OUTPUT_HANDLE, windows.Handle(os.Stderr.Fd()))
	os.Stdout = os.Stderr
}
