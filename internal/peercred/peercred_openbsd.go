package peercred

import "golang.org/x/sys/unix"

// struct sockpeercred of sys/socket.h: uid, gid, pid.
const (
	peerName                  = "SO_PEERCRED"
	peerLevel                 = unix.SOL_SOCKET
	peerOption                = unix.SO_PEERCRED
	peerUID, peerGID, peerPID = 0, 1, 2
)
