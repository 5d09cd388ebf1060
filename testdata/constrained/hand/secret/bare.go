//go:build bare

package secret

func New() string { return "" }

func Take() {}

func Proof(string) []byte { return nil }

func Equal(a, b []byte) bool { return true }
