package plugwire

import (
	"os"
	"time"
)

// A launched process, and all that it has started, ends with its host, however
// that ends. This file says how.
//
// What wakes it is the end of stdin, a pipe of which the host alone has the other
// end: the kernel closes it, also after SIGKILL, and it cannot be missed by
// looking late, as a signal can that was sent before somebody asked for it. But a
// host also closes it when it is done with a plugin, and then waits for the plugin to
// end in its own time; only who sees the host itself gone acts.
//
// Somebody else may have got hold of the other end, though, and keep it. So the
// exit of a host that is the parent wakes it too, where a descriptor tells: a
// pidfd on Linux, a kqueue on macOS and the BSDs.
//
// A signal at the parent's death reaches the child alone, not what is behind a
// wrapper, and SIGKILL, the one that every process obeys, leaves the child no
// time to end what it has itself started. Therefore that is in force only until
// here (see dieWithParent), before this process can have started anything, and in wrappers.
//
// It is watched from an init function, and not only from ServePlugin: a plugin
// may have started others before it gets there, or never get there. Nothing is
// read, for stdin may be somebody else's to whom this process passes it on.
//
// When the host is gone, the others of the group are killed at once (the group
// was made for this launch), and this process after hostGrace, whatever it does: time
// for ServePlugin to end in order, and for what the program does then.
//
// One that is to outlive its host (Config.Launch.Detach) does none of this, and
// ends its group itself when it ends in order.
//
// Windows does it all: there the system ends what is in the host's job (see
// process_windows.go), without any time left. Elsewhere ServePlugin ends by the
// connection or by stdin, and that is all.

// hostGrace is how long a plugin may go on when its host is gone.
const hostGrace = 300 * time.Millisecond

// hostGone is closed when the host is gone, and with it the others of this
// process's group. It is nil in a process that was not launched, or cannot tell.
var hostGone chan struct{}

func init() {
	if text := os.Getenv(launchVar); text != "" {
		order, err := parseLaunchOrder(text)
		if err != nil {
			return
		}
		if order.fd != 0 {
			closeOnExec(order.fd) // what this process starts shall not have it
		}
		if order.detach > 0 {
			outliveHost()
		} else if order.stdin {
			watchHost(order)
		}
	}
}
