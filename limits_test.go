package plugwire

import "testing"

// A limit of messages that is below that of frames holds all the same, and costs
// the caller of what is too large nothing but that call.
func TestMessagesAboveALimitBelowTheFrame(t *testing.T) {
	const most = 5000
	overTransports(t, func(t *testing.T, transport string) {
		cfg := serves(echoMux(nil))
		cfg.Limits.MaxMessage = most
		mux := NewMux()
		mux.Handle("grow", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
			return append(reply, make([]byte, most+1)...), nil
		}))
		x, y := pair(t, transport, cfg, serves(mux))
		if reply, err := y.Call(t.Context(), "echo", make([]byte, most)); err != nil || len(reply) != most {
			t.Fatal(len(reply), err)
		}
		_, err := y.Call(t.Context(), "echo", make([]byte, most+1))
		wantCode(t, err, ResourceExhausted, true)
		wantCode(t, y.Notify(t.Context(), "echo", make([]byte, most+1)), ResourceExhausted, true)
		_, err = x.Call(t.Context(), "grow", nil)
		wantCode(t, err, ResourceExhausted, false)
		if _, err := y.Call(t.Context(), "echo", nil); err != nil {
			t.Fatal(err)
		}
	})
}
