package plugwire

import (
	"os"
	"time"

	"golang.org/x/sys/windows"
)

func dupStdin() (*os.File, error) { return dupFile(os.Stdin) }

// replaceStdin makes f the standard handle, and os.Stdin.
func replaceStdin(f *os.File) error {
	os.Stdin = f
	return windows.SetStdHandle(windows.STD_INPUT_HANDLE, windows.Handle(f.Fd()))
}

// orderFromSocket is not called: package os takes sockets for pipes.
func orderFromSocket(time.Duration) string { return "" }

func dupStdio() (in, out *os.File, err error) {
	if in, err = dupFile(os.Stdin); err != nil {
		return nil, nil, err
	}
	if out, err = dupFile(os.Stdout); err != nil {
		in.Close()
		return nil, nil, err
	}
	os.Stdin.Close() // the end of the connection is seen when no handle is left
	os.Stdout.Close()
	return in, out, nil
}

// dupFile returns a handle that no child inherits.
func dupFile(f *os.File) (*os.File, error) {
	var h windows.Handle
	self := windows.CurrentProcess()
	if err := windows.DuplicateHandle(self, windows.Handle(f.Fd()), self, &h, 0, false, windows.DUPLICATE_SAME_ACCESS); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(h), f.Name()), nil
}

var compareObjectHandles = windows.NewLazySystemDLL("kernelbase.dll").NewProc("CompareObjectHandles")

// same reports whether two files lead to the same place: os.SameFile takes all
// pipes for one.
func same(a, b *os.File) bool {
	if compareObjectHandles.Find() != nil {
		return a.Fd() == b.Fd()
	}
	equal, _, _ := compareObjectHandles.Call(a.Fd(), b.Fd())
	return equal != 0
}
