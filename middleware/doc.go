// Package middleware has what most services put around all their handlers, for
// plugwire's Mux.Use. Use Logging to have a record of each request, RateLimit to
// bound how many begin in a second, and ConcurrencyLimit to bound how many run at
// once:
//
//	mux.Use(middleware.Logging(logger, nil), middleware.RateLimit(1000, 100), middleware.ConcurrencyLimit(64, 256))
//
// The first is the outermost, so here refusals are logged too. What a function of
// this package returns is one limit, shared by all that it wraps: every method of
// the Mux that uses it, and other Muxes that use the same value. To limit one
// method by itself, wrap its handler:
//
//	mux.Handle("report", middleware.ConcurrencyLimit(2, 0)(handler))
//
// A call over a limit ends with code ResourceExhausted, and plugwire.NotRun is
// true of the caller's error: no handler has seen the request, and it may be sent
// again. A one-way message can be refused to nobody: it waits. Those behind it on
// its connection then wait as well, in order, until the connection's window for
// them (Limits.OneWayWindow) is full and the sender's Notify waits too. Only when
// its connection ends meanwhile is the message dropped, as by a handler that
// heeds its context; a sender that uses Flush or Shutdown does not end it before.
package middleware
