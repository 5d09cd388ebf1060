//go:build !linux

package plugwire

const canReadTwo = false

type twoParts struct{}

func readTwo(uintptr, *twoParts, []byte, []byte) (n int, again bool, err error) {
	panic("plugwire: no readv")
}
