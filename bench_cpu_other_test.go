//go:build !unix

package plugwire

import "time"

// processCPU returns 0: how much CPU this process used is not known here.
func processCPU() time.Duration { return 0 }
