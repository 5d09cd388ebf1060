//go:build !race

package plugwire

const poolSlack = 0

// raceEnabled says that the race detector makes everything several times slower.
const raceEnabled = false
