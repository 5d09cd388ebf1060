package tick

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// timer is a timer descriptor, on which the runtime's poller waits.
type timer struct {
	file *os.File // nil when there is none
	fd   int
	buf  [8]byte
}

func (t *timer) open() {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return
	}
	t.file, t.fd = os.NewFile(uintptr(fd), "timerfd"), fd
}

// sleep reports whether it has slept.
func (t *timer) sleep(d time.Duration) bool {
	if t.file == nil {
		return false
	}
	s := unix.ItimerSpec{Value: unix.NsecToTimespec(max(int64(d), 1))} // 0 would be never
	err := unix.TimerfdSettime(t.fd, 0, &s, nil)
	if err == nil {
		_, err = t.file.Read(t.buf[:])
	}
	if err != nil {
		t.close()
	}
	return err == nil
}

func (t *timer) close() {
	if t.file != nil {
		t.file.Close()
		t.file = nil
	}
}
