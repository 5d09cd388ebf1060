//go:build unix && !aix

package lockfile

import "golang.org/x/sys/unix"

func tryLock(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) }

func dropLock(fd int) error { return unix.Flock(fd, unix.LOCK_UN) }
