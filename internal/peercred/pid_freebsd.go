package peercred

// peerPID does not know. FreeBSD 13 and later put the pid into xucred, but
// x/sys v0.1.0 has no field for it, and of a listener it is the process that
// called listen, which need not be the one that serves.
func peerPID(int) int { return -1 }
