package plugwire

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/plugwire/plugwire/internal/peercred"
	"golang.org/x/sys/windows"
)

// What the refusal of "unix:" says on Windows.
const (
	localSockets  = "Unix sockets"
	insteadOfUnix = `use "npipe:"`
)

// errnoCodes are the codes of system errors that have one of their own.
var errnoCodes = []errnoCode{
	{windows.WSAEADDRINUSE, AlreadyExists},
	{windows.WSAEACCES, PermissionDenied},
	{windows.WSAEMFILE, ResourceExhausted},
	{windows.WSAENOBUFS, ResourceExhausted},
	{windows.ERROR_NOT_ENOUGH_MEMORY, ResourceExhausted},
	{windows.ERROR_NO_SYSTEM_RESOURCES, ResourceExhausted},
	{windows.ERROR_NOT_ENOUGH_QUOTA, ResourceExhausted},
	{windows.ERROR_COMMITMENT_LIMIT, ResourceExhausted},
}

// npipeTransport connects processes of one machine through named pipes, in byte
// mode. Addresses are "npipe:////./pipe/name", with slashes or backslashes; to
// listen also "npipe:", which picks a name that nobody can guess.
//
// The connections have no CloseWrite: what was written stays there for the other
// side to read after Close, which is all that this package needs of one.
type npipeTransport struct{}

// npipeRoot begins the path of each pipe of this machine, with slashes.
const npipeRoot = "//./pipe/"

// npipeClientAccess is what a client asks for, and all that other users get. It
// is FILE_GENERIC_READ and FILE_GENERIC_WRITE without FILE_APPEND_DATA, which
// for a pipe is FILE_CREATE_PIPE_INSTANCE: who has that can be the server.
const npipeClientAccess = (windows.FILE_GENERIC_READ | windows.FILE_GENERIC_WRITE) &^ windows.FILE_APPEND_DATA

// Listen makes the first instance of a pipe, and fails if there is one already.
// This user and cfg.NPipe.ClientSIDs can connect, from this machine. From then on
// until Close one instance is always open, so nobody else can take the name. One
// client can connect ahead of Accept; others wait until there is an instance.
func (npipeTransport) Listen(_ context.Context, addr string, cfg *Config) (net.Listener, error) {
	path, err := npipePath("listen", addr)
	if err != nil {
		return nil, err
	}
	if path == "" {
		path = npipeRoot + "plugwire-" + strings.ToLower(rand.Text())
	}
	l := &npipeListener{addr: npipeAddr(path), bufferSize: uint32(cfg.NPipe.BufferSize), waiting: windows.InvalidHandle}
	if l.security, err = npipeSecurity(addr, cfg); err != nil {
		return nil, err
	}
	if l.closed, err = windows.CreateEvent(nil, 1, 0, nil); err == nil {
		if l.overlapped.HEvent, err = windows.CreateEvent(nil, 1, 0, nil); err == nil {
			l.waiting, err = l.instance(windows.FILE_FLAG_FIRST_PIPE_INSTANCE)
		}
	}
	if err != nil {
		l.Close()
		return nil, npipeListenError(addr, err)
	}
	return l, nil
}

// npipeListenError words why a pipe could not be made. That its name is taken,
// the system calls access denied or, when no more instances are allowed, busy.
func npipeListenError(addr string, err error) error {
	if err == windows.ERROR_ACCESS_DENIED || err == windows.ERROR_PIPE_BUSY {
		return &Error{Code: AlreadyExists, Op: "listen", Addr: addr, Message: "another process has this name", Err: err,
			Hint: `stop it, or choose another name; "npipe:" picks one`}
	}
	return sysError("listen", addr, os.NewSyscallError("CreateNamedPipe", err), "")
}

// npipeSecurity says who may do what with a pipe: this user everything, and only
// connect those whom cfg names. The owner is this user, also where the system
// would choose the administrators, since it is by the owner that diallers know
// whose pipe it is.
func npipeSecurity(addr string, cfg *Config) (*windows.SECURITY_DESCRIPTOR, error) {
	user, err := peercred.OwnSID()
	if err != nil {
		return nil, sysError("listen", addr, err, "")
	}
	sddl := fmt.Sprintf("O:%sD:P(A;;FA;;;%[1]s)", user)
	for _, text := range cfg.NPipe.ClientSIDs {
		sid, err := windows.StringToSid(text)
		if err != nil {
			return nil, &Error{Code: InvalidArgument, Op: "listen", Addr: addr, Err: err,
				Message: fmt.Sprintf("Config.NPipe.ClientSIDs has %q, which is no SID", text), Hint: `write "S-1-5-..."`}
		}
		sddl += fmt.Sprintf("(A;;%#x;;;%s)", npipeClientAccess, sid)
	}
	sd, err := windows.SecurityDescriptorFromString(sddl)
	if err != nil {
		return nil, sysError("listen", addr, err, "")
	}
	return sd, nil
}

// Dial opens a pipe. While all its instances are taken it tries again until ctx
// ends; it sets no limit of its own. The server can find out who this process
// runs as, but not act as that user.
func (npipeTransport) Dial(ctx context.Context, addr string, _ *Config) (net.Conn, error) {
	path, err := npipePath("dial", addr)
	if err == nil && path == "" {
		err = &Error{Code: InvalidArgument, Op: "dial", Addr: addr, Message: "there is no pipe to dial",
			Hint: "only Listen picks a name; dial the address of the listener"}
	}
	if err != nil {
		return nil, err
	}
	h, err := openNpipe(ctx, path)
	if err != nil {
		var hint string
		switch {
		case errors.Is(err, fs.ErrNotExist):
			hint = "no process serves this pipe: is the server running, and is the name the same?"
		case errors.Is(err, fs.ErrPermission):
			hint = "the pipe is closed to this user; the server's Config.NPipe.ClientSIDs decides"
		}
		return nil, sysError("dial", addr, err, hint)
	}
	c, err := newNpipeConn(h, npipeAddr(path))
	if err != nil {
		return nil, sysError("dial", addr, err, "")
	}
	return c, nil
}

// Waits between attempts to connect to a server whose instances are all taken.
const (
	firstDialRetry = time.Millisecond
	lastDialRetry  = 50 * time.Millisecond
)

var errPipeBusy = errors.New("all instances of the pipe are taken, the server accepts no connections")

// openNpipe opens the client's end.
func openNpipe(ctx context.Context, path string) (windows.Handle, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return windows.InvalidHandle, err
	}
	err = ctx.Err()
	for wait := firstDialRetry; err == nil; wait = min(2*wait, lastDialRetry) {
		h, err := windows.CreateFile(name, npipeClientAccess, 0, nil, windows.OPEN_EXISTING,
			windows.FILE_FLAG_OVERLAPPED|windows.SECURITY_SQOS_PRESENT|windows.SECURITY_IDENTIFICATION, 0)
		if err != windows.ERROR_PIPE_BUSY {
			return h, os.NewSyscallError("CreateFile", err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return windows.InvalidHandle, fmt.Errorf("%w: %w", errPipeBusy, ctx.Err())
		}
	}
	return windows.InvalidHandle, err
}

// npipePath returns the path in an address, with slashes, or "" in one without.
func npipePath(op, addr string) (string, error) {
	path := strings.ReplaceAll(strings.TrimPrefix(addr, "npipe:"), `\`, "/")
	if path == "" || path == "//" {
		return "", nil
	}
	if strings.HasPrefix(path, "//"+npipeRoot) {
		path = path[2:]
	}
	bad := func(message string) (string, error) {
		return "", &Error{Code: InvalidArgument, Op: op, Addr: addr, Message: message, Hint: `write "npipe:////./pipe/name"`}
	}
	name, ok := strings.CutPrefix(path, npipeRoot)
	if !ok {
		return bad("that is not a pipe of this machine")
	}
	if strings.ContainsRune(name, 0) {
		return bad("the name contains a NUL byte")
	}
	for part := range strings.SplitSeq(name, "/") {
		if strings.Trim(part, ". ") == "" { // the system would resolve it, perhaps to what is no pipe
			return bad("a part of the name is empty or only dots")
		}
	}
	return path, nil
}

// npipeAddr is the address of both ends: the path, with slashes.
type npipeAddr string

func (npipeAddr) Network() string  { return "npipe" }
func (a npipeAddr) String() string { return string(a) }

// npipeError makes what the standard library's connections return of an error
// of a file or of the system.
func npipeError(op string, addr npipeAddr, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	if errors.Is(err, os.ErrClosed) {
		err = net.ErrClosed
	}
	return &net.OpError{Op: op, Net: "npipe", Source: addr, Addr: addr, Err: err}
}

// npipeConn is one end of a connected instance. Its handle is overlapped, and
// the runtime's poller waits for it.
type npipeConn struct {
	f    *os.File
	addr npipeAddr
}

// newNpipeConn owns h, also when it fails.
func newNpipeConn(h windows.Handle, addr npipeAddr) (*npipeConn, error) {
	f := os.NewFile(uintptr(h), string(addr))
	if err := f.SetDeadline(time.Time{}); err != nil { // the poller does not have it
		f.Close()
		return nil, err
	}
	return &npipeConn{f, addr}, nil
}

func (c *npipeConn) Read(b []byte) (int, error) {
	if len(b) == 0 { // would wait for something to arrive
		return 0, nil
	}
	n, err := c.f.Read(b)
	return n, npipeError("read", c.addr, err)
}

func (c *npipeConn) Write(b []byte) (int, error) {
	if len(b) == 0 { // would be the end of the stream to the other side's Read
		return 0, nil
	}
	n, err := c.f.Write(b)
	return n, npipeError("write", c.addr, err)
}

// Close ends both directions. What was written can still be read.
func (c *npipeConn) Close() error { return npipeError("close", c.addr, c.f.Close()) }

func (c *npipeConn) LocalAddr() net.Addr  { return c.addr }
func (c *npipeConn) RemoteAddr() net.Addr { return c.addr }

func (c *npipeConn) SetDeadline(t time.Time) error      { return c.set(c.f.SetDeadline(t)) }
func (c *npipeConn) SetReadDeadline(t time.Time) error  { return c.set(c.f.SetReadDeadline(t)) }
func (c *npipeConn) SetWriteDeadline(t time.Time) error { return c.set(c.f.SetWriteDeadline(t)) }

// set is given what setting a deadline returned. As the first one could be set,
// only Close makes later ones fail; a file then says so with an error that has
// no name.
func (c *npipeConn) set(err error) error {
	if err != nil {
		err = npipeError("set", c.addr, net.ErrClosed)
	}
	return err
}

// SyscallConn gives Control of the handle; Read and Write are for sockets.
func (c *npipeConn) SyscallConn() (syscall.RawConn, error) { return c.f.SyscallConn() }

// npipeListener makes the instances of a pipe, one ahead of the clients.
type npipeListener struct {
	addr       npipeAddr
	bufferSize uint32
	security   *windows.SECURITY_DESCRIPTOR
	closing    sync.Once
	closed     windows.Handle // an event that has Accept end

	mu         sync.Mutex         // held by Accept while it waits
	waiting    windows.Handle     // the instance that the next client gets; invalid after Close
	overlapped windows.Overlapped // of its ConnectNamedPipe
}

// instance makes an instance that a client can connect to.
func (l *npipeListener) instance(flags uint32) (windows.Handle, error) {
	name, err := windows.UTF16PtrFromString(string(l.addr))
	if err != nil {
		return windows.InvalidHandle, err
	}
	sa := &windows.SecurityAttributes{SecurityDescriptor: l.security}
	sa.Length = uint32(unsafe.Sizeof(*sa))
	return windows.CreateNamedPipe(name, windows.PIPE_ACCESS_DUPLEX|windows.FILE_FLAG_OVERLAPPED|flags,
		windows.PIPE_TYPE_BYTE|windows.PIPE_READMODE_BYTE|windows.PIPE_REJECT_REMOTE_CLIENTS,
		windows.PIPE_UNLIMITED_INSTANCES, l.bufferSize, l.bufferSize, 0, sa)
}

// Accept returns an *npipeConn. While it waits it keeps a thread: the runtime's
// poller waits for reads and writes only.
func (l *npipeListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.connect()
	for err == windows.ERROR_NO_DATA { // a client was there, and is gone
		procDisconnectNamedPipe.Call(uintptr(l.waiting))
		err = l.connect()
	}
	if err != nil {
		return nil, npipeError("accept", l.addr, err)
	}
	next, err := l.instance(0)
	if err != nil { // that client pays: without an instance, the name would be anybody's
		procDisconnectNamedPipe.Call(uintptr(l.waiting))
		return nil, npipeError("accept", l.addr, os.NewSyscallError("CreateNamedPipe", err))
	}
	h := l.waiting
	l.waiting = next
	c, err := newNpipeConn(h, l.addr)
	if err != nil {
		return nil, npipeError("accept", l.addr, err)
	}
	return c, nil
}

// connect waits for a client. Called with mu held.
func (l *npipeListener) connect() error {
	if l.waiting == windows.InvalidHandle {
		return net.ErrClosed
	}
	err := windows.ConnectNamedPipe(l.waiting, &l.overlapped)
	if err == windows.ERROR_PIPE_CONNECTED { // before we asked
		return nil
	}
	if err != windows.ERROR_IO_PENDING {
		return err
	}
	event, err := windows.WaitForMultipleObjects([]windows.Handle{l.overlapped.HEvent, l.closed}, false, windows.INFINITE)
	if err != nil || event != windows.WAIT_OBJECT_0 {
		windows.CancelIoEx(l.waiting, &l.overlapped)
	}
	var n uint32
	done := windows.GetOverlappedResult(l.waiting, &l.overlapped, &n, true) // the system does not use overlapped any more
	if err == nil && event != windows.WAIT_OBJECT_0 {
		err = net.ErrClosed
	}
	if err != nil {
		return err
	}
	return done
}

func (l *npipeListener) Addr() net.Addr { return l.addr }

// Close stops listening. Connections live on, except one that was not accepted.
// The name is free when the last of them is closed. Only the first call does
// something.
func (l *npipeListener) Close() error {
	err := npipeError("close", l.addr, net.ErrClosed)
	l.closing.Do(func() {
		err = nil
		windows.SetEvent(l.closed)
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, h := range []windows.Handle{l.waiting, l.overlapped.HEvent, l.closed} {
			if h != 0 && h != windows.InvalidHandle {
				windows.CloseHandle(h)
			}
		}
		l.waiting = windows.InvalidHandle
	})
	return err
}

// x/sys v0.1.0 does not have it.
var procDisconnectNamedPipe = windows.NewLazySystemDLL("kernel32.dll").NewProc("DisconnectNamedPipe")
