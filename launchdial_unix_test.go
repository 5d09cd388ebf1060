//go:build unix && !plugwire_notls

package plugwire

import (
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"time"
)

// Whoever answers at the first address is not passed by: a handshake that fails
// is the end, also when there is a further address.
func TestNoFurtherAddressAfterAFailedHandshake(t *testing.T) {
	impostor, err := new(Server).Listen("unix:")
	if err != nil {
		t.Fatal(err)
	}
	defer impostor.Close()
	alt, err := new(Server).Listen("tcp:")
	if err != nil {
		t.Fatal(err)
	}
	defer alt.Close()
	go func() {
		if nc, err := impostor.Accept(); err == nil {
			io.Copy(io.Discard, nc)
			nc.Close()
		}
	}()
	lt := newLaunchTest(t, "impostor")
	lt.cmd.Env = append(lt.cmd.Env, fmt.Sprintf("%s=1|0|unix|%v|plugwire|%s|alt=tcp:%v", impostorEnv, impostor.Addr(), noPin, alt.Addr()))
	_, err = Launch(t.Context(), lt.cmd, lt.cfg)
	checkLaunchError(t, err, PermissionDenied, "handshake: ")
	// It would wait here to be accepted: Launch has returned, and dials nothing more.
	alt.(*tcpListener).ln.SetDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := alt.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the further address was dialled")
	}
}
