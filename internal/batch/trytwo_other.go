//go:build !linux

package batch

// canTryTwo is false: everything that is sent is gathered first.
const canTryTwo = false

type parts struct{}

func writeTwo(uintptr, *parts, []byte, []byte) (int, error) { panic("not reached") }
