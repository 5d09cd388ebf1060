package plugwire

import (
	"errors"
	"os/exec"

	"golang.org/x/sys/windows"
)

func isBadFormat(err error) bool {
	const wrongMachine = windows.Errno(216) // ERROR_EXE_MACHINE_TYPE_MISMATCH
	return errors.Is(err, windows.ERROR_BAD_EXE_FORMAT) || errors.Is(err, wrongMachine)
}

func changesRoot(*exec.Cmd) bool { return false }
