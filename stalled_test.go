package plugwire

import (
	"sync"
	"testing"
)

// T19: a stuck handler, a stream that nobody reads and a full window of one-way
// messages, all at once, harm no other call and no other stream.
func TestT19AllThatIsStuckHarmsNoOther(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		const window = 64 << 10
		unblock := make(chan struct{})
		m := streamMux()
		for _, name := range []string{"stuck", "stuck note"} {
			m.Handle(name, HandlerFunc(func(_ *Request, reply []byte) ([]byte, error) {
				<-unblock
				return reply, nil
			}))
		}
		cfg := serves(m)
		cfg.Limits.StreamWindow, cfg.Limits.OneWayWindow = window, window
		x, y := pair(t, transport, nil, cfg)

		var stuck sync.WaitGroup
		for range 3 {
			stuck.Go(func() {
				if _, err := x.Call(background, "stuck", nil); err != nil {
					t.Error(err)
				}
			})
		}
		unread := openStream(t, x, "stream.wait")
		stuck.Go(func() {
			for unread.Send(make([]byte, 1000)) == nil {
			}
		})
		const notes = 2 * window / (1000 + messageCost)
		stuck.Go(func() {
			for range notes {
				if err := x.Notify(background, "stuck note", make([]byte, 1000)); err != nil {
					t.Error(err)
				}
			}
		})
		until(t, "everything to be stuck", func() bool {
			x.out.Lock()
			defer x.out.Unlock()
			return !unread.gate.Empty() && !x.notes.window.Empty() && y.servingCount.Load() == 4
		})

		parallelChecks(t, x, 1000)
		checkSum(t, x)
		x.out.Lock()
		if unread.gate.Empty() || x.notes.window.Empty() || y.servingCount.Load() < 4 {
			t.Error("something was no longer stuck meanwhile")
		}
		x.out.Unlock()

		close(unblock)
		unread.Reset(Canceled)
		stuck.Wait()
		if err := x.Flush(background); err != nil {
			t.Error(err)
		}
		accounts(t, x, y)
	})
}
