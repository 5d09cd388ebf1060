// A plugin that crashes before it serves.
package main

func main() {
	panic("no level in the settings")
}
