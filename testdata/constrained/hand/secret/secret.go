//go:build !bare

// Package secret is what the two programs written by hand have in common with
// plugwire beside the frames: the proof of a one-time secret, and a log. The tag
// bare leaves both out, nolog the log.
package secret

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"os"
)

var key []byte

func New() string {
	key = make([]byte, 32)
	rand.Read(key)
	return hex.EncodeToString(key)
}

func Take() {
	key, _ = hex.DecodeString(os.Getenv("SECRET"))
	os.Unsetenv("SECRET")
}

func Proof(role string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(role))
	return h.Sum(nil)
}

func Equal(a, b []byte) bool { return hmac.Equal(a, b) }
