//go:build !linux

package sockio

// TwoAvailable is false: nothing is read to two pieces of memory, or written from them.
const TwoAvailable = false

type Two struct{}

func (*Two) Write(uintptr, []byte, []byte) (int, error) { panic("not reached") }

func (*Two) Read(uintptr, []byte, []byte) (int, bool, error) { panic("not reached") }
