//go:build bare || nolog

package secret

var Logger any

func Log(any, string) {}
