//go:build !linux

package sockio

// TwoAvailable is false: nothing is read to two pieces of memory.
const TwoAvailable = false

type Two struct{}

func (*Two) Read(uintptr, []byte, []byte) (int, bool, error) { panic("not reached") }
