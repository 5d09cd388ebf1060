//go:build unix

package plugwire

import (
	"errors"
	"os/exec"
	"runtime"
	"syscall"
)

// isBadFormat reports whether the system does not take a file for a program.
func isBadFormat(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	const badArch, badMachO = 86, 88 // macOS
	return errno == syscall.ENOEXEC || runtime.GOOS == "darwin" && (errno == badArch || errno == badMachO)
}

// changesRoot reports whether the command's path means another file to it.
func changesRoot(cmd *exec.Cmd) bool { return cmd.SysProcAttr != nil && cmd.SysProcAttr.Chroot != "" }
