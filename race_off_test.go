//go:build !race

package plugwire

// raceEnabled says that the race detector makes everything several times slower.
const raceEnabled = false
