package plugwire

import (
	"net"
	"testing"

	"golang.org/x/sys/windows"
)

// underWine says that this is not Windows.
var underWine = windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() == nil

const localTransport = "npipe"

// unixPair returns the two ends of a named pipe.
func unixPair(t testing.TB) (a, b net.Conn) { return netPair(t, "npipe", nil) }
