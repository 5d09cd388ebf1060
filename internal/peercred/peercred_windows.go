package peercred

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Tells says that the kernel names peers here.
const Tells = true

// OwnSID returns the SID of the user that this process runs as.
var OwnSID = sync.OnceValues(func() (string, error) {
	return userOf(windows.GetCurrentProcessToken())
})

func userOf(token windows.Token) (string, error) {
	u, err := token.GetTokenUser()
	if err != nil {
		return "", os.NewSyscallError("GetTokenInformation", err)
	}
	return u.User.Sid.String(), nil
}

// x/sys v0.1.0 does not have these.
var (
	kernel32 = windows.NewLazySystemDLL("kernel32.dll")
	advapi32 = windows.NewLazySystemDLL("advapi32.dll")

	procClientProcessID   = kernel32.NewProc("GetNamedPipeClientProcessId")
	procServerProcessID   = kernel32.NewProc("GetNamedPipeServerProcessId")
	procImpersonateClient = advapi32.NewProc("ImpersonateNamedPipeClient")
)

// pipeServerEnd is PIPE_SERVER_END of GetNamedPipeInfo.
const pipeServerEnd = 1

// ofSocket names the peer of a named pipe: a client by its token at the moment
// when it opened the pipe, a server by the pipe's owner. A pid alone would not
// do: its process may have been replaced, and may not be ours to ask.
func ofSocket(fd uintptr) (Cred, error) {
	h := windows.Handle(fd)
	var flags uint32
	if err := windows.GetNamedPipeInfo(h, &flags, nil, nil, nil); err != nil {
		return unknown, fmt.Errorf("not a named pipe: %w", errors.ErrUnsupported)
	}
	c := unknown
	var err error
	if flags&pipeServerEnd != 0 {
		c.PID = pidOf(procClientProcessID, h)
		c.SID, err = clientSID(h)
	} else {
		c.PID = pidOf(procServerProcessID, h)
		c.SID, err = ownerSID(h)
	}
	if err != nil {
		return unknown, err
	}
	return c, nil
}

func pidOf(proc *windows.LazyProc, h windows.Handle) int {
	var pid uint32
	if ok, _, _ := proc.Call(uintptr(h), uintptr(unsafe.Pointer(&pid))); ok == 0 || pid == 0 {
		return -1
	}
	return int(pid)
}

func ownerSID(h windows.Handle) (string, error) {
	sd, err := windows.GetSecurityInfo(h, windows.SE_KERNEL_OBJECT, windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return "", os.NewSyscallError("GetSecurityInfo", err)
	}
	owner, _, err := sd.Owner()
	if err != nil {
		return "", os.NewSyscallError("GetSecurityDescriptorOwner", err)
	}
	return owner.String(), nil
}

// clientSID asks on a thread that acts as the client for that instant. A client
// that hides who it is (SECURITY_ANONYMOUS), or wants it asked at each write
// (SECURITY_CONTEXT_TRACKING), is an error.
func clientSID(h windows.Handle) (sid string, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if ok, _, e := procImpersonateClient.Call(uintptr(h)); ok == 0 {
			runtime.UnlockOSThread()
			err = os.NewSyscallError("ImpersonateNamedPipeClient", e)
			return
		}
		var token windows.Token
		err = os.NewSyscallError("OpenThreadToken",
			windows.OpenThreadToken(windows.CurrentThread(), windows.TOKEN_QUERY, true, &token))
		if windows.RevertToSelf() == nil {
			runtime.UnlockOSThread()
		} // else the thread ends with this goroutine, and nothing more runs as the client
		if err == nil {
			defer token.Close()
			sid, err = userOf(token)
		}
	}()
	<-done
	return sid, err
}
