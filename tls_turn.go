//go:build !plugwire_notls

package plugwire

import (
	"context"
	"crypto/tls"

	"github.com/plugwire/plugwire/internal/turns"
)

// handshakeTurns are for answers to a ClientHello. One costs who is sent it a few
// hundred microseconds, for the key exchange above all, and who sends it nothing,
// so a crowd that only says hello would have everybody wait until it was answered.
// Of those who wait the newest comes first, as it is the oldest that Server.greet
// has end when they become too many.
var handshakeTurns turns.Turns

// A handshakeTurn is one handshake's: it has a turn from when the other side has
// said something until the key exchange is done, unless it waits for the other
// side meanwhile. What comes later costs the other side as much, and must not
// wait for those who have only begun.
type handshakeTurn struct {
	ctx  context.Context
	rank uint64
	here bool
}

// takeTurns has the handshake of an accepting side with settings take turns.
func (t *tlsConn) takeTurns(ctx context.Context, settings *tls.Config) {
	t.turn = &handshakeTurn{ctx: ctx, rank: rankOf(ctx)}
	certificate := settings.GetCertificate
	settings.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		t.endTurns() // the certificate may come from afar, and so may its signature
		return certificate(h)
	}
}

// endTurns has the handshake go on without.
func (t *tlsConn) endTurns() {
	t.turn.end()
	t.turn = nil
}

// begin waits for a turn. On nil it and end do nothing.
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
