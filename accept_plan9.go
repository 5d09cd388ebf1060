package plugwire

// temporary reports whether Accept may succeed later: the errors do not tell.
func temporary(error) bool { return false }
