package plugwire

// Stand-ins until there is a connection: the rows by hand, so that they can be
// measured against themselves.
var (
	oursUnaryRow   = rawMuxRow
	oursDoAllRow   = rawMuxRow
	oursOneWayRow  = rawOneWayRow
	oursConnectRow = rawConnectRow
	oursCallersRow = row{name: "callers", service: "raw-echo", connect: connectRawMux, shape: manyCallers}
	oursNoYieldRow = row{name: "no yield", service: "raw-echo", connect: connectRawMuxNoYield}
)

func manyCallers(w *workload) { w.workers, w.batch = w.workers*w.batch, 1 }

func connectRawMuxNoYield(network, addr string, w workload) (*benchClient, error) {
	noYieldRaw = true
	defer func() { noYieldRaw = false }()
	return connectRawMux(network, addr, w)
}
