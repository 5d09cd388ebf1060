package plugwire

import "golang.org/x/sys/unix"

// groupMembers returns the processes of a group.
func groupMembers(group int) (pids []int, err error) {
	members, err := unix.SysctlKinfoProcSlice("kern.proc.pgrp", group)
	for _, m := range members {
		pids = append(pids, int(m.Proc.P_pid))
	}
	return pids, err
}
