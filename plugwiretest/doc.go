// Package plugwiretest is for tests of programs that use plugwire, and for
// debugging them. Use Plugin to have a plugin in the process of the test, where
// its handlers can be stepped through, and Pair for the two ends of a
// connection:
//
//	func TestGreeting(t *testing.T) {
//		p := plugwiretest.Plugin(t, greeterMux(), nil)
//		if got, err := greetAll(ctx, p, "a", "b"); ... // takes a plugwire.Caller
//	}
//
// Use Faulty to see how code copes with a connection that is slow, cuts what it
// carries to pieces, stalls or breaks off, with PairOver or below any
// plugwire.NewConn and ServeConn; and a Script to play a peer that says what no
// peer should. Everything is closed with the test.
//
// In a bubble of testing/synctest connect the two by net.Pipe, with PairOver: its
// clock stands still while somebody waits for a socket. A connection is for the
// bubble in which it was made.
package plugwiretest
