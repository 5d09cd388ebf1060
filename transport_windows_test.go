package plugwire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/plugwire/plugwire/internal/peercred"
	"golang.org/x/sys/windows"
)

// skipUnderWine skips a test of what Wine does not do as Windows does.
func skipUnderWine(t *testing.T, why string) {
	t.Helper()
	if underWine {
		t.Skip("not shown under wine: " + why)
	}
}

func listenNpipe(t *testing.T, addr string, cfg *Config) *npipeListener {
	t.Helper()
	l, err := npipeTransport{}.Listen(t.Context(), addr, cfg.withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*npipeListener)
}

func dialNpipe(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := npipeTransport{}.Dial(t.Context(), addrURI(l.Addr()), new(Config).withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// npipePair returns the two ends of a fresh pipe.
func npipePair(t *testing.T) (dialled, accepted net.Conn) {
	t.Helper()
	l := listenNpipe(t, "npipe:", nil)
	dialled = dialNpipe(t, l)
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })
	return dialled, accepted
}

func TestNamedPipeAddresses(t *testing.T) {
	for addr, want := range map[string]string{
		"npipe:":                       "",
		"npipe://":                     "",
		"npipe:////./pipe/app":         "//./pipe/app",
		"npipe://./pipe/app":           "//./pipe/app",
		`npipe://\\.\pipe\app`:         "//./pipe/app",
		`npipe:\\.\pipe\a\b`:           "//./pipe/a/b",
		"npipe:////./pipe/.hidden.app": "//./pipe/.hidden.app",
	} {
		if got, err := npipePath("dial", addr); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", addr, got, err, want)
		}
	}
	for _, addr := range []string{"npipe:app", "npipe:////server/pipe/app", "npipe:////./pipe/", "npipe:////./pipe/../C:/x",
		`npipe://\\.\pipe\.\x`, "npipe:////./pipe/a//b", "npipe:////./pipe/.. /x", "npipe:////./pipe/a\x00b", "npipe:////?/pipe/a", "npipe:///C:/x"} {
		for op, do := range map[string]func() error{
			"listen": func() error {
				_, err := npipeTransport{}.Listen(t.Context(), addr, new(Config).withDefaults())
				return err
			},
			"dial": func() error {
				_, err := npipeTransport{}.Dial(t.Context(), addr, new(Config).withDefaults())
				return err
			},
		} {
			wantError(t, do(), InvalidArgument, op, addr)
		}
	}
	_, err := npipeTransport{}.Dial(t.Context(), "npipe:", new(Config).withDefaults())
	wantError(t, err, InvalidArgument, "dial", "npipe:", "no pipe to dial")
	_, err = npipeTransport{}.Dial(t.Context(), "npipe:////./pipe/plugwire-nobody", new(Config).withDefaults())
	wantError(t, err, Unavailable, "dial", "npipe:////./pipe/plugwire-nobody", "is the server running")
	_, err = npipeTransport{}.Listen(t.Context(), "npipe:", (&Config{NPipe: NPipeConfig{ClientSIDs: []string{"me)(A;;FA;;;WD"}}}).withDefaults())
	wantError(t, err, InvalidArgument, "listen", "npipe:", "is no SID")
}

// wantOpError fails the test unless err is what connections of package net
// return, for this cause.
func wantOpError(t *testing.T, err error, op string, cause error) {
	t.Helper()
	var oe *net.OpError
	if !errors.As(err, &oe) || oe.Op != op || oe.Net != "npipe" || !errors.Is(err, cause) || errors.Is(err, os.ErrClosed) {
		t.Errorf("got %T %v; want a *net.OpError of %s, because of %v", err, err, op, cause)
	}
	var ne net.Error
	if timeout := cause == os.ErrDeadlineExceeded; !errors.As(err, &ne) || ne.Timeout() != timeout {
		t.Errorf("%v: Timeout is not %v", err, timeout)
	}
}

func TestNamedPipeDeadlines(t *testing.T) {
	watchdog(t)
	a, b := npipePair(t)
	buf := make([]byte, 1<<20)
	for _, c := range []net.Conn{a, b} {
		for range 3 {
			start := time.Now()
			c.SetReadDeadline(start.Add(30 * time.Millisecond))
			_, err := c.Read(buf)
			wantOpError(t, err, "read", os.ErrDeadlineExceeded)
			if d := time.Since(start); d < 20*time.Millisecond || d > 5*time.Second {
				t.Errorf("the read ended after %v", d)
			}
		}
		_, err := c.Read(buf) // one that has passed
		wantOpError(t, err, "read", os.ErrDeadlineExceeded)
		c.SetReadDeadline(time.Time{})
		interrupted := make(chan error, 1)
		go func() { _, err := c.Read(buf); interrupted <- err }()
		until(t, "the read ends", func() bool { // whether or not it had begun when the deadline moved
			c.SetReadDeadline(time.Unix(1, 0))
			return len(interrupted) == 1
		})
		wantOpError(t, <-interrupted, "read", os.ErrDeadlineExceeded)
		c.SetDeadline(time.Time{})
	}
	for c, other := range map[net.Conn]net.Conn{a: b, b: a} { // and it works after all that
		go c.Write([]byte("hello"))
		if n, err := io.ReadFull(other, buf[:5]); err != nil || string(buf[:n]) != "hello" {
			t.Errorf("%q, %v", buf[:n], err)
		}
	}
	a.SetWriteDeadline(time.Now().Add(30 * time.Millisecond)) // nobody reads
	_, err := a.Write(buf)
	wantOpError(t, err, "write", os.ErrDeadlineExceeded)
}

func TestNamedPipeCloseErrors(t *testing.T) {
	watchdog(t)
	for _, dialledCloses := range []bool{true, false} {
		a, b := npipePair(t)
		if !dialledCloses {
			a, b = b, a
		}
		if n, err := a.Write(nil); n != 0 || err != nil { // else the end, for b
			t.Error(n, err)
		}
		if n, err := a.Read(nil); n != 0 || err != nil { // else it waits
			t.Error(n, err)
		}
		blocked := make(chan error, 1)
		go func() { _, err := a.Read(make([]byte, 9)); blocked <- err }()
		if _, err := a.Write([]byte("the last words")); err != nil {
			t.Fatal(err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		wantOpError(t, receive(t, "the blocked read", blocked), "read", net.ErrClosed)
		wantOpError(t, a.Close(), "close", net.ErrClosed)
		_, err := a.Read(make([]byte, 1))
		wantOpError(t, err, "read", net.ErrClosed)
		_, err = a.Write(make([]byte, 1))
		wantOpError(t, err, "write", net.ErrClosed)
		wantOpError(t, a.SetDeadline(time.Time{}), "set", net.ErrClosed)
		if got, err := io.ReadAll(b); string(got) != "the last words" || err != nil {
			t.Errorf("after the close %q, %v arrived", got, err)
		}
		var oe *net.OpError
		if _, err = b.Write([]byte("x")); !errors.As(err, &oe) {
			t.Errorf("%T %v", err, err)
		}
	}
}

// A socket that is closed with unread bytes would destroy what it has sent.
func TestNamedPipeClosedWithUnreadBytesKeepsWhatItSent(t *testing.T) {
	watchdog(t)
	for range 20 {
		a, b := npipePair(t)
		if _, err := b.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		a.Read(make([]byte, 10))
		a.Write([]byte("the reason"))
		a.Close()
		if got, err := io.ReadAll(b); string(got) != "the reason" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
	}
}

func TestNamedPipeAcceptEndsWithClose(t *testing.T) {
	watchdog(t)
	before := handles(t)
	defer func() {
		const slack = 40 // threads
		if now := handles(t); now > before+slack {
			t.Errorf("%d handles, %d before", now, before)
		}
	}()
	for range 50 {
		l := listenNpipe(t, "npipe:", nil)
		ended := make(chan error, 2)
		for range cap(ended) {
			go func() { _, err := l.Accept(); ended <- err }()
		}
		until(t, "Accept waits", func() bool {
			if !l.mu.TryLock() {
				return true
			}
			l.mu.Unlock()
			return false
		})
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		for range cap(ended) {
			wantOpError(t, receive(t, "the end of Accept", ended), "accept", net.ErrClosed)
		}
		wantOpError(t, l.Close(), "close", net.ErrClosed)
		_, err := l.Accept()
		wantOpError(t, err, "accept", net.ErrClosed)
		if _, err := (npipeTransport{}).Dial(t.Context(), addrURI(l.Addr()), new(Config).withDefaults()); CodeOf(err) != Unavailable {
			t.Errorf("the pipe is still there: %v", err)
		}
	}
}

func TestNamedPipeBacklogFull(t *testing.T) {
	watchdog(t)
	l := listenNpipe(t, "npipe:", nil)
	addr := addrURI(l.Addr())
	first := dialNpipe(t, l)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := npipeTransport{}.Dial(ctx, addr, new(Config).withDefaults())
	wantError(t, err, DeadlineExceeded, "dial", addr, "the server accepts no connections")
	_, err = npipeTransport{}.Dial(ctx, addr, new(Config).withDefaults()) // its context has ended before
	wantError(t, err, DeadlineExceeded, "dial", addr)
	second := make(chan error, 1)
	go func() {
		c, err := npipeTransport{}.Dial(context.Background(), addr, new(Config).withDefaults())
		if err == nil {
			_, err = c.Write([]byte("second"))
			c.Close()
		}
		second <- err
	}()
	first.Close() // came and went before anybody accepted
	for {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(c)
		c.Close()
		if string(got) == "second" {
			break
		}
	}
	if err := <-second; err != nil {
		t.Error(err)
	}
}

func handles(t *testing.T) int {
	t.Helper()
	var n uint32
	if ok, _, err := windows.NewLazySystemDLL("kernel32.dll").NewProc("GetProcessHandleCount").Call(
		uintptr(windows.CurrentProcess()), uintptr(unsafe.Pointer(&n))); ok == 0 {
		t.Fatal(err)
	}
	return int(n)
}

func TestNamedPipeServesManyClients(t *testing.T) {
	watchdog(t)
	_, addr, _ := served(t, "npipe", echoMux(nil), nil)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			c, err := Dial(t.Context(), addr, testConfig(nil))
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for k := range 10 {
				if err := checkCall(t.Context(), c, 1000, uint64(10*i+k)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// The name is taken already, by whoever: a server does not join in.
func TestT09TakenNameIsNotListenedOn(t *testing.T) {
	skipUnderWine(t, "it ignores FILE_FLAG_FIRST_PIPE_INSTANCE")
	l := listenNpipe(t, "npipe:", nil)
	addr := addrURI(l.Addr())
	_, err := npipeTransport{}.Listen(t.Context(), addr, new(Config).withDefaults())
	wantError(t, err, AlreadyExists, "listen", addr, "another process has this name")
	c := dialNpipe(t, l)
	l.Accept()
	l.Close()
	_, err = npipeTransport{}.Listen(t.Context(), addr, new(Config).withDefaults()) // c holds the last instance
	wantError(t, err, AlreadyExists, "listen", addr)
	c.Close()
}

// Nobody else can make an instance of our pipe, nor open it unless named.
func TestT09OthersMayAtMostConnect(t *testing.T) {
	const other = "S-1-5-21-1-2-3-1001"
	l := listenNpipe(t, "npipe:", &Config{NPipe: NPipeConfig{ClientSIDs: []string{other}}})
	dialNpipe(t, l)
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	own, err := peercred.OwnSID()
	if err != nil {
		t.Fatal(err)
	}
	for what, h := range map[string]windows.Handle{"first": pipeHandle(t, accepted), "second": l.waiting} {
		sd, err := windows.GetSecurityInfo(h, windows.SE_KERNEL_OBJECT, windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
		if err != nil {
			t.Fatal(err)
		}
		want := "O:" + own + "D:P(A;;FA;;;" + own + ")(A;;0x12019b;;;" + other + ")"
		if got := sd.String(); got != want {
			t.Errorf("the %s instance has %s, want %s", what, got, want)
		}
	}
}

func pipeHandle(t *testing.T, c net.Conn) (h windows.Handle) {
	t.Helper()
	raw, err := c.(*npipeConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { h = windows.Handle(fd) })
	return h
}

// A pipe that belongs to somebody else is not talked to, unless it may be.
func TestT09PipeOfAnotherOwnerIsRefused(t *testing.T) {
	watchdog(t)
	const administrators = "S-1-5-32-544"
	sd, err := windows.SecurityDescriptorFromString("O:" + administrators + "D:(A;;FA;;;WD)")
	if err != nil {
		t.Fatal(err)
	}
	l := listenNpipe(t, "npipe:", nil)
	l.addr += "-theirs"
	l.security = sd
	h, err := l.instance(windows.FILE_FLAG_FIRST_PIPE_INSTANCE)
	if err == windows.ERROR_INVALID_OWNER {
		t.Skip("only administrators can give a pipe another owner than themselves")
	}
	if err != nil {
		t.Fatal(err)
	}
	windows.CloseHandle(l.waiting)
	l.waiting = h
	s := &Server{Mux: echoMux(nil), Config: testConfig(&Config{Authorize: func(*Peer) error { return nil }})}
	go s.Serve(l)
	defer s.Close()
	_, err = Dial(t.Context(), addrURI(l.addr), testConfig(nil))
	wantError(t, err, PermissionDenied, "handshake", addrURI(l.addr), administrators, "Config.NPipe.ServerSIDs")
	c, err := Dial(t.Context(), addrURI(l.addr), testConfig(&Config{NPipe: NPipeConfig{ServerSIDs: []string{administrators}}}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if p := c.Peer(); p.SID != administrators || p.PID != os.Getpid() {
		t.Errorf("%+v", p)
	}
	if err := checkCall(t.Context(), c, 100, 1); err != nil {
		t.Error(err)
	}
}

// A server may ask who its client is, and not act as the client.
func TestT10ServerCannotActAsItsClient(t *testing.T) {
	skipUnderWine(t, "its ImpersonateNamedPipeClient gives the server its own token, at a level of its own")
	_, accepted := npipePair(t)
	runtime.LockOSThread() // until the end: the test's goroutine ends with its thread
	impersonate := windows.NewLazySystemDLL("advapi32.dll").NewProc("ImpersonateNamedPipeClient")
	if ok, _, err := impersonate.Call(uintptr(pipeHandle(t, accepted))); ok == 0 {
		t.Fatal(err)
	}
	_, err := os.ReadDir(os.TempDir())
	var token windows.Token
	terr := windows.OpenThreadToken(windows.CurrentThread(), windows.TOKEN_QUERY, true, &token)
	if e := windows.RevertToSelf(); e != nil || terr != nil {
		t.Fatal(e, terr)
	}
	defer token.Close()
	if !errors.Is(err, windows.ERROR_BAD_IMPERSONATION_LEVEL) {
		t.Errorf("reading a directory as the client: %v", err)
	}
	var level, n uint32
	if err := windows.GetTokenInformation(token, windows.TokenImpersonationLevel, (*byte)(unsafe.Pointer(&level)), 4, &n); err != nil || level != windows.SecurityIdentification {
		t.Errorf("level %d, %v; want %d", level, err, windows.SecurityIdentification)
	}
}

const npipeAddrEnv = "PLUGWIRE_TEST_NPIPE"

func init() {
	behaviours["streams"] = func() { must(ServePlugin(streamMux(), nil)) }
	children["npipe client"] = func() {
		c, err := Dial(context.Background(), os.Getenv(npipeAddrEnv), nil)
		if err != nil {
			panic(err)
		}
		if _, err := c.Call(context.Background(), "echo", []byte(strconv.Itoa(os.Getpid()))); err != nil {
			panic(err)
		}
		c.Close()
	}
}

// Both sides name the other's process and user.
func TestNamedPipePeer(t *testing.T) {
	watchdog(t)
	m, seen := NewMux(), make(chan string, 1)
	peers := make(chan *Peer, 1)
	m.Handle("echo", HandlerFunc(func(r *Request, reply []byte) ([]byte, error) {
		seen <- string(r.Payload())
		peers <- r.Peer()
		return reply, nil
	}))
	_, addr, _ := served(t, "npipe", m, nil)
	cmd := childCommand("npipe client", npipeAddrEnv+"="+addr)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatal(err, stderr.String())
	}
	own, _ := peercred.OwnSID()
	said, p := receive(t, "the call", seen), <-peers
	if strconv.Itoa(p.PID) != said || p.PID == os.Getpid() || p.SID != own || !p.Verified || p.Transport != "npipe" || p.UID != -1 || p.GID != -1 {
		t.Errorf("%+v; want pid %s, sid %s", p, said, own)
	}
	if want := "sid " + own + " pid " + said + " over npipe"; p.String() != want {
		t.Errorf("%v, want %s", p, want)
	}
	lt := newLaunchTest(t, "good")
	if p := lt.launch(); p.Conn().Peer().PID != p.Pid() || p.Conn().Peer().SID != own {
		t.Errorf("%+v; want pid %d, sid %s", p.Conn().Peer(), p.Pid(), own)
	}
}

// What every user of the library does, in volume: by default over a named pipe,
// and over TCP with automatic mutual TLS.
func TestWindowsEndToEnd(t *testing.T) {
	for _, transports := range [][]string{nil, {"tcp"}} {
		want := append(transports, "npipe")[0]
		t.Run(want, func(t *testing.T) {
			lt := newLaunchTest(t, "streams")
			lt.cfg.Transports = transports
			p := lt.launch()
			if s := p.Selection(); s.Chosen != want || strings.Contains(s.String(), "mutual TLS") != (want == "tcp") {
				t.Fatal(s)
			}
			start := time.Now()
			const callers, calls = 50, 100_000
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					c := &Call{Method: "echo", Request: []byte("hello")}
					for range calls / callers {
						c.Reply = c.Reply[:0]
						if err := p.Do(t.Context(), c); err != nil || string(c.Reply) != "hello" {
							t.Errorf("%q, %v", c.Reply, err)
							return
						}
					}
				})
			}
			wg.Wait()
			t.Logf("%d calls in %v", calls, time.Since(start))
			start = time.Now()
			for range calls {
				if err := p.Notify(t.Context(), "echo", []byte("hello")); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Conn().Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d one-way messages in %v", calls, time.Since(start))
			start = time.Now()
			const streams, messages = 8, 2000
			for i := range streams {
				wg.Go(func() {
					s, err := p.OpenStream(t.Context(), "stream.echo")
					if err != nil {
						t.Error(err)
						return
					}
					defer s.Close()
					wg.Go(func() {
						for k := range messages {
							s.Send(sealed(100+k, uint64(i)<<32|uint64(k)))
						}
						s.CloseSend()
					})
					for k := range messages {
						b, err := s.Recv()
						if seed, why := unseal(b); err != nil || why != nil || seed != uint64(i)<<32|uint64(k) {
							t.Errorf("message %d of stream %d: %v, %v", k, i, err, why)
							return
						}
					}
					if _, err := s.Recv(); err != io.EOF {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			t.Logf("%d messages to and fro on %d streams in %v", streams*messages, streams, time.Since(start))
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
