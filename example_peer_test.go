//go:build unix

package plugwire_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/plugwire/plugwire"
)

// An application and its sidecar share a socket in a common directory and run
// as two users, 1000 and 2000. Each has to name the other: the server who may
// connect, beside its own user, and the dialling side who may serve. The file's
// mode, too, has to let the other user in: who cannot open it is never asked.
func ExampleUnixConfig() {
	dir, _ := os.MkdirTemp("", "plugwire-example")
	defer os.RemoveAll(dir)
	addr := "unix://" + filepath.Join(dir, "app.sock")

	// The application, as user 1000.
	mux := plugwire.NewMux()
	mux.HandleFunc("greet", func(ctx context.Context, name []byte) ([]byte, error) {
		return append([]byte("hello, "), name...), nil
	})
	srv := &plugwire.Server{Mux: mux, Config: &plugwire.Config{
		Unix: plugwire.UnixConfig{Mode: 0o666, ClientUIDs: []int{2000}},
	}}
	l, err := srv.Listen(addr)
	if err != nil {
		fmt.Println(err)
		return
	}
	go srv.Serve(l)
	defer srv.Close()

	// The sidecar, as user 2000.
	conn, err := plugwire.Dial(context.Background(), addr, &plugwire.Config{
		Unix: plugwire.UnixConfig{ServerUIDs: []int{1000}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	reply, err := conn.Call(context.Background(), "greet", []byte("sidecar"))
	fmt.Println(string(reply), err)
	// Output: hello, sidecar <nil>
}
