//go:build unix

package sockio

import (
	"errors"
	"syscall"
)

// Available says that Read and Write work.
const Available = true

// errTell is what an untold call returns that has done nothing and cannot: the
// scheduler is to be told.
var errTell = errors.New("sockio: tell the scheduler")

// Write makes one attempt to write b. A full socket is 0 bytes and no error. woken
// says that its caller has been waiting for the descriptor, and was woken.
func Write(fd uintptr, b []byte, woken bool) (n int, err error) {
	for {
		err = errTell
		if !woken || process.going.Load() {
			n, err = writeUntold(fd, b)
		}
		if err == errTell {
			n, err = syscall.Write(int(fd), b)
		}
		switch err {
		case nil:
			if canUntold {
				process.moved(n)
			}
			return n, nil
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return 0, nil
		}
		return 0, err
	}
}

// Read makes one attempt to read to b; again says that there was nothing to read yet.
// woken is as for Write.
func Read(fd uintptr, b []byte, woken bool) (n int, again bool, err error) {
	for {
		err = errTell
		if !woken || process.going.Load() {
			n, err = readUntold(fd, b)
		}
		if err == errTell {
			n, err = syscall.Read(int(fd), b)
		}
		switch err {
		case nil:
			if canUntold {
				process.moved(n)
			}
			return n, false, nil
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return 0, true, nil
		}
		return 0, false, err
	}
}
