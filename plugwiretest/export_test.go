package plugwiretest

const ErrReset = errReset
