package plugwire

// Stand-ins until there is a connection: the rows by hand, so that they can be
// measured against themselves.
var (
	oursUnaryRow   = rawMuxRow
	oursDoAllRow   = rawMuxRow
	oursOneWayRow  = rawOneWayRow
	oursConnectRow = rawConnectRow
)
