package plugwire

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// handleEnv has the value of a handle that the host can inherit to others.
const handleEnv = "PLUGWIRE_TEST_HANDLE"

func init() {
	children["host"] = func() { // launches a plugin, and does not end
		cmd := childCommand("plugin")
		p, err := Launch(context.Background(), cmd, nil)
		must(err)
		pids, err := p.Call(context.Background(), "family", nil)
		must(err)
		fmt.Println(string(pids))
		forever()
	}
	children["sleeps"] = forever
	children["wrapper"] = func() {
		cmd := childCommand("plugin")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		must(cmd.Run())
	}
	children["console host"] = func() {
		fmt.Println(hasConsole())
		for _, behaviour := range []string{"good", "lingers"} {
			cmd := childCommand("plugin", behaveEnv+"="+behaviour)
			p, err := Launch(context.Background(), cmd, &Config{Launch: LaunchConfig{TermTimeout: time.Second, ExitTimeout: 20 * time.Second}})
			must(err)
			if behaviour == "good" { // it is asked while it serves
				p.cur.Load().proc.signal(syscall.SIGTERM)
				fmt.Println(p.Wait())
			} else { // and this one when it has stopped to
				fmt.Println(p.Close())
			}
		}
	}
	behaviours["early family"] = func() {
		child := childCommand("sleeps")
		child.Stdout, child.Stderr = os.Stdout, os.Stderr // holds them open
		must(child.Start())
		mux := testPluginMux()
		mux.HandleFunc("family", func(context.Context, []byte) ([]byte, error) {
			return fmt.Append(nil, os.Getpid(), child.Process.Pid), nil
		})
		must(ServePlugin(mux, nil))
	}
	behaviours["handles"] = func() {
		var modes []string
		for _, f := range []*os.File{os.Stdin, os.Stdout, os.Stderr} {
			modes = append(modes, fmt.Sprint(isSynchronous(windows.Handle(f.Fd()))))
		}
		mux := testPluginMux()
		mux.HandleFunc("pipes", func(context.Context, []byte) ([]byte, error) {
			return []byte(strings.Join(modes, " ")), nil
		})
		mux.HandleFunc("inherited", func(context.Context, []byte) ([]byte, error) {
			value, _ := strconv.ParseUint(os.Getenv(handleEnv), 10, 64)
			f := os.NewFile(uintptr(value), "inherited")
			b := make([]byte, 6)
			n, err := f.ReadAt(b, 0)
			return fmt.Appendf(nil, "%q %v", b[:n], err != nil), nil
		})
		must(ServePlugin(mux, nil))
	}
}

// isSynchronous reports whether a handle was opened without FILE_FLAG_OVERLAPPED.
func isSynchronous(h windows.Handle) (bool, error) {
	var mode uint32
	var status [2]uintptr
	const fileModeInformation, synchronous = 16, 0x10 | 0x20
	r, _, _ := windows.NewLazySystemDLL("ntdll.dll").NewProc("NtQueryInformationFile").Call(uintptr(h),
		uintptr(unsafe.Pointer(&status)), uintptr(unsafe.Pointer(&mode)), unsafe.Sizeof(mode), fileModeInformation)
	if r != 0 {
		return false, windows.NTStatus(r)
	}
	return mode&synchronous != 0, nil
}

// hold opens processes, as their numbers say, to see their end.
func hold(t *testing.T, pids string) (handles []windows.Handle) {
	t.Helper()
	for _, text := range strings.Fields(pids) {
		pid, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("%q", pids)
		}
		h, err := windows.OpenProcess(windows.SYNCHRONIZE, false, uint32(pid))
		if err != nil {
			t.Fatal(pid, err)
		}
		t.Cleanup(func() { windows.CloseHandle(h) })
		handles = append(handles, h)
	}
	if len(handles) != 2 {
		t.Fatalf("%q", pids)
	}
	return handles
}

func wantEnd(t *testing.T, handles []windows.Handle) {
	t.Helper()
	for i, h := range handles {
		if event, err := windows.WaitForSingleObject(h, 10_000); event != windows.WAIT_OBJECT_0 {
			t.Errorf("process %d of the family is still there: %v, %v", i, event, err)
		}
	}
}

func TestT22PluginAndGrandchildrenEndWithAKilledHost(t *testing.T) {
	host := childCommand("host", behaveEnv+"=early family")
	host.Stderr = os.Stderr
	stdout, err := host.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	defer host.Process.Kill()
	pids, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	family := hold(t, pids)
	host.Process.Kill()
	host.Wait()
	wantEnd(t, family)
}

// What a plugin has started, be it the first thing that it did, is in its job.
func TestT23GrandchildrenEndWithThePlugin(t *testing.T) {
	for name, end := range map[string]func(p *Plugin){
		"that is closed":       func(p *Plugin) { p.Close() },
		"that exits by itself": func(p *Plugin) { p.Call(context.Background(), "exit", []byte("0")); p.Wait() },
	} {
		t.Run(name, func(t *testing.T) {
			lt := newLaunchTest(t, "early family")
			p := lt.launch()
			pids, err := p.Call(t.Context(), "family", nil)
			if err != nil {
				t.Fatal(err)
			}
			family := hold(t, string(pids))
			grandchild, _ := strconv.Atoi(strings.Fields(string(pids))[1])
			if !inGroupOf(grandchild, p.Pid()) || inGroupOf(os.Getpid(), p.Pid()) {
				t.Errorf("in the job: the grandchild %v, this process %v", inGroupOf(grandchild, p.Pid()), inGroupOf(os.Getpid(), p.Pid()))
			}
			start := time.Now()
			end(p)
			if took := time.Since(start); took > lt.cfg.withDefaults().Launch.TermTimeout {
				t.Errorf("the end took %v", took) // it waits for nobody who holds the pipes
			}
			wantEnd(t, family)
			if inGroupOf(p.Pid(), p.Pid()) {
				t.Error("the job is still there")
			}
		})
	}
}

func TestPluginBehindAWrapperIsInItsJob(t *testing.T) {
	lt := newLaunchTest(t, "good")
	lt.cmd.Env = append(lt.cmd.Env, childEnv+"=wrapper")
	p := lt.launch()
	lt.greets(p)
	if peer := p.Conn().Peer(); peer.PID == p.Pid() || !inGroupOf(peer.PID, p.Pid()) || !peer.Valid() {
		t.Errorf("%v serves, %d was started", peer, p.Pid())
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// A plugin gets Ctrl-Break where there is a console to send it in: while it
// serves that ends it in order, and afterwards as it ends any program.
func TestCtrlBreakAsksThePluginToEnd(t *testing.T) {
	skipUnderWine(t, "there is no console without a terminal, and no Ctrl-Break with one")
	host := childCommand("console host")
	host.SysProcAttr = &syscall.SysProcAttr{CreationFlags: windows.CREATE_NO_WINDOW} // but with a console, whatever the test has
	var stderr strings.Builder
	host.Stderr = &stderr
	out, err := host.Output()
	if err != nil {
		t.Fatal(err, stderr.String())
	}
	said := strings.Split(string(out), "\n")
	if len(said) < 3 || said[0] != "true" || said[1] != "<nil>" || !strings.Contains(said[2], "exit status 0xc000013a") { // STATUS_CONTROL_C_EXIT
		t.Errorf("%q", said)
	}
}

// A plugin inherits its three pipes, none of which waits as Windows' own
// programs do not, and nothing else.
func TestPluginInheritsItsPipesAlone(t *testing.T) {
	file, err := os.Create(filepath.Join(os.TempDir(), "plugwire-"+strconv.Itoa(os.Getpid())))
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(file.Name())
	defer file.Close()
	io.WriteString(file, "secret")
	h := windows.Handle(file.Fd())
	if err := windows.SetHandleInformation(h, windows.HANDLE_FLAG_INHERIT, windows.HANDLE_FLAG_INHERIT); err != nil {
		t.Fatal(err)
	}
	lt := newLaunchTest(t, "handles")
	lt.cmd.Env = append(lt.cmd.Env, handleEnv+"="+strconv.FormatUint(uint64(h), 10))
	p := lt.launch()
	for method, want := range map[string]string{
		"inherited": `"" true`,
		"pipes":     "true <nil> true <nil> true <nil>",
	} {
		if got, err := p.Call(t.Context(), method, nil); err != nil || string(got) != want {
			t.Errorf("%s: %s, %v; want %s", method, got, err, want)
		}
	}
	if synchronous, err := isSynchronous(h); err != nil || !synchronous {
		t.Errorf("this looks at nothing: %v, %v", synchronous, err)
	}
}

// The flags that the template asks for stay, and decide about the console.
func TestOwnGroupAddsToTheTemplate(t *testing.T) {
	const added = windows.CREATE_SUSPENDED | windows.CREATE_NEW_PROCESS_GROUP
	template := &syscall.SysProcAttr{HideWindow: true, CreationFlags: windows.CREATE_NEW_CONSOLE}
	cmd := &exec.Cmd{SysProcAttr: template}
	ownGroup(cmd)
	if got := cmd.SysProcAttr; !got.HideWindow || got.CreationFlags != added|windows.CREATE_NEW_CONSOLE || template.CreationFlags != windows.CREATE_NEW_CONSOLE {
		t.Errorf("%+v of %+v", got, template)
	}
	cmd = &exec.Cmd{}
	ownGroup(cmd)
	want := uint32(added)
	if !hasConsole() {
		want |= windows.CREATE_NO_WINDOW
	}
	if got := cmd.SysProcAttr.CreationFlags; got != want {
		t.Errorf("%#x, want %#x", got, want)
	}
}
