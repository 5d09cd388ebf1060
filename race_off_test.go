//go:build !race

package plugwire

const poolSlack = 0
