//go:build race

package plugwire

// poolSlack is what sync.Pool may cost more: under the race detector it forgets at random.
const poolSlack = 512 << 10

// raceEnabled says that the race detector makes everything several times slower.
const raceEnabled = true
