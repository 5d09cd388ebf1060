package peercred

// struct unpcbid of sys/un.h: pid, euid, egid. x/sys v0.1.0 has neither number.
const (
	peerName                  = "LOCAL_PEEREID"
	peerLevel                 = 0 // SOL_LOCAL
	peerOption                = 3
	peerPID, peerUID, peerGID = 0, 1, 2
)
