package conformance

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"
	"time"
)

// overHTTP runs body with a client whose requests go through streams to handler.
func overHTTP(t *testing.T, handler http.Handler, body func(t *testing.T, client *http.Client, l *tunnel)) {
	overTransports(t, func(t *testing.T, transport string) {
		l := newTunnel(t, transport)
		server := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0)}
		served := make(chan error, 1)
		go func() { served <- server.Serve(l) }()
		transp := &http.Transport{
			DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return l.dial(ctx) },
			MaxIdleConnsPerHost: 1000,
		}
		t.Cleanup(func() {
			transp.CloseIdleConnections()
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			if err := server.Shutdown(ctx); err != nil {
				t.Error("Shutdown: ", err)
			}
			if err := <-served; err != http.ErrServerClosed {
				t.Error("Serve: ", err)
			}
		})
		body(t, &http.Client{Transport: transp, Timeout: 30 * time.Second}, l)
	})
}

// fetch makes a request and returns the body of the answer.
func fetch(client *http.Client, req *http.Request) (*http.Response, string, error) {
	resp, err := client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

func request(method, path string, body io.Reader) *http.Request {
	req, err := http.NewRequest(method, "http://plugin"+path, body)
	if err != nil {
		panic(err)
	}
	return req
}

var echoPath = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) })

// One connection serves one request after the other.
func TestHTTPKeepAlive(t *testing.T) {
	overHTTP(t, echoPath, func(t *testing.T, client *http.Client, l *tunnel) {
		for i := range 100 {
			path := fmt.Sprint("/", i)
			resp, body, err := fetch(client, request("GET", path, nil))
			if err != nil || resp.StatusCode != 200 || body != path {
				t.Fatalf("%q, %v", body, err)
			}
		}
		if n := l.accepted.Load(); n != 1 {
			t.Errorf("100 requests made %d connections", n)
		}
	})
}

func TestHTTPLargeBodies(t *testing.T) {
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hash := sha256.New()
		if _, err := io.Copy(hash, r.Body); err != nil {
			panic(err)
		}
		fmt.Fprintf(w, "%x", hash.Sum(nil))
		io.Copy(w, io.LimitReader(rand.NewChaCha8([32]byte{2}), 5e6))
	})
	overHTTP(t, answer, func(t *testing.T, client *http.Client, _ *tunnel) {
		there, back := sha256.New(), sha256.New()
		io.Copy(there, io.LimitReader(rand.NewChaCha8([32]byte{1}), 9e6))
		io.Copy(back, io.LimitReader(rand.NewChaCha8([32]byte{2}), 5e6))
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				body := io.LimitReader(rand.NewChaCha8([32]byte{1}), 9e6) // sent in chunks: its length is not known
				_, got, err := fetch(client, request("POST", "/", body))
				if err != nil || len(got) < 64 || got[:64] != fmt.Sprintf("%x", there.Sum(nil)) ||
					sha256.Sum256([]byte(got[64:])) != [32]byte(back.Sum(nil)) {
					t.Errorf("%d bytes and wrong, %v", len(got), err)
				}
			})
		}
		wg.Wait()
	})
}

func TestHTTPManyAtOnce(t *testing.T) {
	overHTTP(t, echoPath, func(t *testing.T, client *http.Client, _ *tunnel) {
		var wg sync.WaitGroup
		for g := range 100 {
			wg.Go(func() {
				for i := range 20 {
					path := fmt.Sprintf("/%d/%d", g, i)
					if _, body, err := fetch(client, request("GET", path, nil)); err != nil || body != path {
						t.Errorf("%s: %q, %v", path, body, err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

// The end of a body without a length is that of its connection.
func TestHTTPServerCloses(t *testing.T) {
	text := strings.Repeat("line\n", 100000)
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/close":
			w.Header().Set("Connection", "close")
		case "/abort":
			w.Header().Set("Content-Length", fmt.Sprint(len(text)))
			io.WriteString(w, text[:len(text)/2])
			panic(http.ErrAbortHandler)
		case "/raw":
			conn, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				panic(err)
			}
			defer conn.Close()
			rw.WriteString("HTTP/1.0 200 OK\r\n\r\n" + text)
			rw.Flush()
			return
		}
		io.WriteString(w, text)
	})
	overHTTP(t, answer, func(t *testing.T, client *http.Client, l *tunnel) {
		for _, path := range []string{"/close", "/raw", "/close", "/raw"} {
			if _, body, err := fetch(client, request("GET", path, nil)); err != nil || body != text {
				t.Errorf("%s: %d bytes of %d, %v", path, len(body), len(text), err)
			}
		}
		if n := l.accepted.Load(); n != 4 {
			t.Errorf("4 requests made %d connections", n)
		}
		_, body, err := fetch(client, request("GET", "/abort", nil))
		if err != io.ErrUnexpectedEOF {
			t.Errorf("/abort: %d bytes of %d, %v", len(body), len(text), err)
		}
	})
}

// A connection that the server closes while it is idle is not used again.
func TestHTTPIdleClose(t *testing.T) {
	overTransports(t, func(t *testing.T, transport string) {
		l := newTunnel(t, transport)
		server := &http.Server{Handler: echoPath, IdleTimeout: 5 * time.Millisecond}
		served := make(chan error, 1)
		go func() { served <- server.Serve(l) }()
		transp := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return l.dial(ctx) }}
		t.Cleanup(func() {
			transp.CloseIdleConnections()
			server.Close()
			<-served
		})
		for i := range 5 {
			var reused bool
			trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }}
			req := request("GET", "/idle", nil)
			_, body, err := fetch(&http.Client{Transport: transp}, req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
			if err != nil || body != "/idle" || reused {
				t.Errorf("request %d: %q, %v, reused %v", i, body, err, reused)
			}
			if !inTime(func() bool { return l.open.Load() == 0 }) {
				t.Fatal("the idle connection is not closed")
			}
			time.Sleep(5 * time.Millisecond) // until the client has seen it; else it tries again by itself
		}
	})
}

// A server that answers without reading the request is heard, though the client
// is still sending.
func TestHTTPEarlyAnswer(t *testing.T) {
	refuse := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		io.WriteString(w, "too large")
	})
	overHTTP(t, refuse, func(t *testing.T, client *http.Client, _ *tunnel) {
		for range 3 {
			body := io.LimitReader(rand.NewChaCha8([32]byte{1}), 9e6)
			resp, text, err := fetch(client, request("POST", "/", body))
			if err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge || text != "too large" {
				t.Errorf("%q, %v", text, err)
			}
		}
	})
}

// A client that gives up ends the context of the server's handler.
func TestHTTPClientGivesUp(t *testing.T) {
	started, ended := make(chan struct{}, 1), make(chan error, 1)
	wait := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		started <- struct{}{}
		<-r.Context().Done()
		ended <- r.Context().Err()
	})
	overHTTP(t, wait, func(t *testing.T, client *http.Client, _ *tunnel) {
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-started; cancel() }()
		if _, _, err := fetch(client, request("GET", "/", nil).WithContext(ctx)); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := <-ended; err != context.Canceled {
			t.Error(err)
		}
	})
}

// An upgraded connection is a bare one: each side ends its direction for itself.
func TestHTTPUpgrade(t *testing.T) {
	upgrade := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		rw.Flush()
		io.Copy(conn, rw)
	})
	overHTTP(t, upgrade, func(t *testing.T, _ *http.Client, l *tunnel) {
		conn, err := l.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		req := request("GET", "/", nil)
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "echo")
		if err := req.Write(conn); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(conn)
		resp, err := http.ReadResponse(r, req)
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatal(resp, err)
		}
		const n = 3e6
		go func() {
			io.Copy(conn, io.LimitReader(rand.NewChaCha8([32]byte{3}), n))
			conn.(interface{ CloseWrite() error }).CloseWrite()
		}()
		want, got := sha256.New(), sha256.New()
		io.Copy(want, io.LimitReader(rand.NewChaCha8([32]byte{3}), n))
		if m, err := io.Copy(got, r); m != n || err != nil || [32]byte(got.Sum(nil)) != [32]byte(want.Sum(nil)) {
			t.Errorf("%d bytes of %d, %v", m, int(n), err)
		}
	})
}
