package plugwire

import "golang.org/x/sys/windows"

// What the refusal of "unix:" says on Windows.
const (
	localSockets  = "Unix sockets and named pipes"
	insteadOfUnix = `"tcp:" is`
)

// errnoCodes are the codes of system errors that have one of their own.
var errnoCodes = []errnoCode{
	{windows.WSAEADDRINUSE, AlreadyExists},
	{windows.WSAEACCES, PermissionDenied},
	{windows.WSAEMFILE, ResourceExhausted},
	{windows.WSAENOBUFS, ResourceExhausted},
}
