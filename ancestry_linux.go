package plugwire

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// maxAncestry bounds how far descendsFrom looks.
const maxAncestry = 16

// descendsFrom reports whether ancestor is the parent of a process, or its
// parent's parent, and so on.
func descendsFrom(pid, ancestor int) bool {
	for range maxAncestry {
		if pid <= 1 {
			return false
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return false
		}
		// pid (name) state ppid ...: the name may have anything in it.
		after := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(after) < 2 {
			return false
		}
		if pid, err = strconv.Atoi(after[1]); err != nil || pid == ancestor {
			return err == nil
		}
	}
	return false
}
