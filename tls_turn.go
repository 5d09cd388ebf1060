//go:build !plugwire_notls

package plugwire

import (
	"context"
	"crypto/tls"

	"github.com/plugwire/plugwire/internal/turns"
)

// handshakeTurns are for computing handshakes of TLS that somebody else began. A
// ClientHello costs who is sent it a few hundred microseconds and who sends it
// nothing, so a crowd that only says hello would have everybody wait until it was
// answered. Of those who wait the newest comes first, as it is the oldest that
// Server.greet has end when they become too many.
var handshakeTurns turns.Turns

// A handshakeTurn is one handshake's: it computes in a turn from when the other
// side has said something until it answers, or asks anybody who may have it wait.
// nil has no turns and needs none.
type handshakeTurn struct {
	ctx  context.Context
	rank uint64
	here bool
}

// takeTurns has the accepting side's handshake with settings take turns.
func takeTurns(ctx context.Context, settings *tls.Config) *handshakeTurn {
	t := &handshakeTurn{ctx: ctx, rank: rankOf(ctx)}
	certificate, verify := settings.GetCertificate, settings.VerifyConnection
	settings.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		t.end() // it may come from afar, and so may its signature
		return certificate(h)
	}
	settings.VerifyConnection = func(cs tls.ConnectionState) error {
		t.end()
		return verify(cs)
	}
	return t
}

// begin waits for a turn.
func (t *handshakeTurn) begin() error {
	if t == nil {
		return nil
	}
	err := handshakeTurns.Take(t.ctx, t.rank)
	t.here = err == nil
	return err
}

// end gives it back, if it is not given back.
func (t *handshakeTurn) end() {
	if t != nil && t.here {
		t.here = false
		handshakeTurns.Give()
	}
}
