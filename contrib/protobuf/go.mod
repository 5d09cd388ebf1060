module github.com/plugwire/plugwire/contrib/protobuf

go 1.25.0

require (
	github.com/plugwire/plugwire v0.0.0
	google.golang.org/protobuf v1.36.12
)

require golang.org/x/sys v0.1.0 // indirect

replace github.com/plugwire/plugwire => ../..
