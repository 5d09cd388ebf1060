package plugwire

import (
	"os"
	"os/exec"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// A plugin's process is in a job object before it runs, and so is all that it
// starts. The host has the only handle of it: with that, which the system closes
// however the host ends, they end too.

// stopSignals are those that ServePlugin takes for the wish that it ends:
// Ctrl-Break arrives as an interrupt.
var stopSignals = []os.Signal{syscall.SIGTERM, os.Interrupt}

// jobs has the job of each process that was started, by the process's number: as
// Unix finds a process group by its.
var jobs struct {
	sync.Mutex
	of map[int]*job
}

type job struct {
	handle  windows.Handle
	process windows.Handle // as long as it is open, no other process gets the number
	breaks  bool           // Ctrl-Break can be sent to it
}

// withJob calls f with the job of a process, which stays open that long, and
// reports whether there is one.
func withJob(pid int, f func(j *job)) bool {
	jobs.Lock()
	defer jobs.Unlock()
	j := jobs.of[pid]
	if j != nil {
		f(j)
	}
	return j != nil
}

// noSharedConsole are the flags with which a process does not share the console
// of this one.
const noSharedConsole = windows.CREATE_NEW_CONSOLE | windows.CREATE_NO_WINDOW | windows.DETACHED_PROCESS

// ownGroup has cmd wait for joinGroup before it runs, and be the first of a
// console process group, which Ctrl-C does not reach and Ctrl-Break alone.
// It shares the console of this process, if that has one, since there is no
// Ctrl-Break to another; else the system would open a window for it. It reports
// false: no process has to end a group.
func ownGroup(cmd *exec.Cmd) bool {
	var attr syscall.SysProcAttr
	if cmd.SysProcAttr != nil {
		attr = *cmd.SysProcAttr
	}
	attr.CreationFlags |= windows.CREATE_SUSPENDED | windows.CREATE_NEW_PROCESS_GROUP
	if attr.CreationFlags&noSharedConsole == 0 && !hasConsole() {
		attr.CreationFlags |= windows.CREATE_NO_WINDOW
	}
	cmd.SysProcAttr = &attr
	return false
}

func hasConsole() bool {
	page, _, _ := procGetConsoleCP.Call()
	return page != 0
}

// joinGroup puts the process, which was started as ownGroup says, into a job and
// lets it run; outlives says that what is in it is not to end with this process.
// After an error it is gone.
func joinGroup(cmd *exec.Cmd, outlives bool) error {
	j, err := newJob(cmd.Process.Pid, outlives)
	if err == nil {
		err = resume(cmd.Process.Pid)
	}
	if err != nil {
		j.close()
		cmd.Process.Kill()
		cmd.Wait()
		return &Error{Code: Unavailable, Message: "the process cannot be put into a job object", Err: err}
	}
	j.breaks = cmd.SysProcAttr.CreationFlags&noSharedConsole == 0
	jobs.Lock()
	defer jobs.Unlock()
	if jobs.of == nil {
		jobs.of = map[int]*job{}
	}
	jobs.of[cmd.Process.Pid] = j
	return nil
}

// newJob makes a job, which ends with its handle unless it outlives that, for a
// process that was not waited for. It returns it also with an error.
func newJob(pid int, outlives bool) (j *job, err error) {
	j = new(job)
	if j.handle, err = windows.CreateJobObject(nil, nil); err != nil {
		return j, os.NewSyscallError("CreateJobObject", err)
	}
	var limits windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION
	if !outlives {
		limits.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
	}
	if _, err = windows.SetInformationJobObject(j.handle, windows.JobObjectExtendedLimitInformation,
		uintptr(unsafe.Pointer(&limits)), uint32(unsafe.Sizeof(limits))); err != nil {
		return j, os.NewSyscallError("SetInformationJobObject", err)
	}
	if j.process, err = windows.OpenProcess(windows.PROCESS_SET_QUOTA|windows.PROCESS_TERMINATE|windows.SYNCHRONIZE,
		false, uint32(pid)); err != nil {
		return j, os.NewSyscallError("OpenProcess", err)
	}
	return j, os.NewSyscallError("AssignProcessToJobObject", windows.AssignProcessToJobObject(j.handle, j.process))
}

// close ends what is in the job.
func (j *job) close() {
	for _, h := range []windows.Handle{j.handle, j.process} {
		if h != 0 {
			windows.CloseHandle(h)
		}
	}
}

// resume lets a process run that was started suspended. The handle of its thread
// is gone by then (package syscall has closed it), so the system lists the threads of all.
func resume(pid int) error {
	snapshot, err := windows.CreateToolhelp32Snapshot(windows.TH32CS_SNAPTHREAD, 0)
	if err != nil {
		return os.NewSyscallError("CreateToolhelp32Snapshot", err)
	}
	defer windows.CloseHandle(snapshot)
	var t windows.ThreadEntry32
	t.Size = uint32(unsafe.Sizeof(t))
	resumed := false
	for err = windows.Thread32First(snapshot, &t); err == nil; err = windows.Thread32Next(snapshot, &t) {
		if t.OwnerProcessID != uint32(pid) {
			continue
		}
		if err := resumeThread(t.ThreadID); err != nil {
			return err
		}
		resumed = true
	}
	if !resumed {
		return os.NewSyscallError("Thread32Next", err) // ERROR_NO_MORE_FILES: it has ended, somebody has killed it
	}
	return nil
}

func resumeThread(id uint32) error {
	h, err := windows.OpenThread(windows.THREAD_SUSPEND_RESUME, false, id)
	if err != nil {
		return os.NewSyscallError("OpenThread", err)
	}
	defer windows.CloseHandle(h)
	_, err = windows.ResumeThread(h)
	return os.NewSyscallError("ResumeThread", err)
}

// endGroup kills what a process that was waited for has left in its job.
func endGroup(cmd *exec.Cmd) {
	pid := cmd.Process.Pid
	withJob(pid, func(j *job) {
		delete(jobs.of, pid)
		j.close()
	})
}

// inGroupOf reports whether a process is in the job of another, which this
// process has started.
func inGroupOf(pid, leader int) bool {
	h, err := windows.OpenProcess(windows.PROCESS_QUERY_INFORMATION, false, uint32(pid)) // less would do, but not for Wine
	if err != nil {
		return false
	}
	defer windows.CloseHandle(h)
	var in int32
	withJob(leader, func(j *job) {
		procIsProcessInJob.Call(uintptr(h), uintptr(j.handle), uintptr(unsafe.Pointer(&in))) // or it stays 0
	})
	return in != 0
}

// signalGroup kills all that are in the job of a process, or sends them
// Ctrl-Break, which stands for every other signal. Who does not share the console
// does not get that.
func signalGroup(p *os.Process, sig syscall.Signal) {
	there := withJob(p.Pid, func(j *job) {
		if sig == syscall.SIGKILL {
			windows.TerminateJobObject(j.handle, killedStatus)
		} else if j.breaks {
			windows.GenerateConsoleCtrlEvent(windows.CTRL_BREAK_EVENT, uint32(p.Pid))
		}
	})
	if !there {
		p.Signal(sig)
	}
}

// killedStatus is the status that os.Process.Kill gives a process.
const killedStatus = 1

// dieWithParent has nothing to do: the job ends with the host.
func dieWithParent(*exec.Cmd) bool { return false }

// awaitExit waits until the process has ended, and kills what it has left in its
// job: that may hold the pipes open that are read next. Like everything else
// it leaves the end of the job to endGroup, and says so.
func awaitExit(p *os.Process) (done bool) {
	var process windows.Handle
	if withJob(p.Pid, func(j *job) { process = j.process }) { // which endGroup closes, later in this goroutine
		windows.WaitForSingleObject(process, windows.INFINITE)
		signalGroup(p, syscall.SIGKILL)
	}
	return false
}

// x/sys v0.1.0 does not have these.
var (
	kernel32           = windows.NewLazySystemDLL("kernel32.dll")
	procGetConsoleCP   = kernel32.NewProc("GetConsoleCP")
	procIsProcessInJob = kernel32.NewProc("IsProcessInJob")
)
