package plugwire

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
)

// PROOF: how the two sides of a launch show that they are the two sides of that
// launch. docs/PROTOCOL.md section 5.4.

// featureProof is what a side with a secret requires, so that one without says
// so by name.
const featureProof = "proof"

// proofLen is the length of PROOF's payload.
const proofLen = sha256.Size

// The roles that PROOF names.
const (
	roleDialler  = "dialler"
	roleListener = "listener"
)

// A secret is known to a host and the plugin that it launched, and to nobody
// else. It is never sent over the connection, and never printed.
type secret [32]byte

func newSecret() *secret {
	s := new(secret)
	rand.Read(s[:])
	return s
}

// secretTextLen is the length of a secret in text: hexadecimal digits and "\n".
const secretTextLen = 2*len(secret{}) + 1

// text returns what parseSecret reads.
func (s *secret) text() string { return hex.EncodeToString(s[:]) + "\n" }

func parseSecret(text string) (*secret, error) {
	s := new(secret)
	if len(text) != secretTextLen || text[secretTextLen-1] != '\n' {
		return nil, errors.New("plugwire: not a one-time secret")
	}
	if _, err := hex.Decode(s[:], []byte(text[:secretTextLen-1])); err != nil {
		return nil, errors.New("plugwire: not a one-time secret") // its text is not repeated
	}
	return s, nil
}

// Format keeps package fmt from printing the secret.
func (s *secret) Format(w fmt.State, _ rune) { io.WriteString(w, "[one-time secret]") }

// proof returns the payload of the PROOF that the side with the role sends.
// hellos is the hash of what both sides sent before, binding what ties the proof
// to the encrypted connection below, if there is one.
func (s *secret) proof(role string, hellos [sha256.Size]byte, binding []byte) []byte {
	mac := hmac.New(sha256.New, s[:])
	io.WriteString(mac, "plugwire/1 "+role)
	mac.Write(hellos[:])
	mac.Write(binding)
	return mac.Sum(nil)
}

// hashHellos returns the hash of both sides' magic and HELLO frame.
func hashHellos(dialler, listener []byte) (sum [sha256.Size]byte) {
	h := sha256.New()
	h.Write(dialler)
	h.Write(listener)
	h.Sum(sum[:0])
	return sum
}

// appendProof appends a PROOF frame.
func appendProof(dst, payload []byte) []byte {
	dst = appendFrameHeader(dst, FrameHeader{Type: FrameProof, Length: proofLen})
	return append(dst, payload...)
}

// checkProof reads the other side's PROOF, which must be the one wanted.
func checkProof(nc net.Conn, want []byte) (told bool, err error) {
	h, b, err := readOpeningFrame(nc, FrameProof)
	if err != nil {
		return false, err
	}
	if h.Type == FrameGoAway {
		return true, parseGoAwayFailed(b)
	}
	if !hmac.Equal(b, want) {
		return false, &Error{Code: Unauthenticated, Message: "the other side does not know the one-time secret of this launch"}
	}
	return false, nil
}
