//go:build race

package plugwire

// poolSlack is what sync.Pool may cost more: under the race detector it forgets at random.
const poolSlack = 512 << 10
