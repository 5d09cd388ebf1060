package plugwire

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// This file is about a plugin's program: its environment, its checksum, and why
// it cannot be started.

// launchEnviron returns the environment of a plugin, but for launchVar.
func launchEnviron(template *exec.Cmd, l *LaunchConfig) []string {
	if template.Env != nil || l.InheritEnv == nil {
		return template.Environ()
	}
	env := []string{} // not nil: that would mean all
	for _, name := range l.InheritEnv {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return (&exec.Cmd{Env: env, Dir: template.Dir}).Environ() // which adds what the system needs
}

// startVerified starts the command if its file has the SHA-256 sum, or without
// looking when that is "".
func startVerified(cmd *exec.Cmd, sum string) error {
	path := cmd.Path
	if sum != "" && cmd.Err == nil {
		exe, err := openVerified(cmd, sum)
		if err == nil {
			defer exe.Close()
			runOpened(cmd, exe)
		}
		cmd.Err = err // then Start fails, and closes the pipes
	}
	err := cmd.Start()
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) && pe.Path == cmd.Path {
		pe.Path = path
	}
	if e := (*Error)(nil); err == nil || errors.As(err, &e) {
		return err
	}
	code, hint := startHint(cmd.Dir, path, err)
	return &Error{Code: code, Hint: hint, Err: err}
}

// runOpened has cmd execute the file that is open, whatever is at its path by
// then, where the system can do that.
func runOpened(cmd *exec.Cmd, exe *os.File) {
	if runtime.GOOS != "linux" {
		return
	}
	// The plugin inherits the descriptor: Start may use the number of one that it
	// does not for another file, and the interpreter of a script has to open it.
	cmd.ExtraFiles = append(slices.Clip(cmd.ExtraFiles), exe)
	cmd.Path = fmt.Sprint("/proc/self/fd/", 2+len(cmd.ExtraFiles))
}

// openVerified opens the command's file, which must have the SHA-256 sum.
func openVerified(cmd *exec.Cmd, sum string) (*os.File, error) {
	want, err := hex.DecodeString(sum)
	if err != nil || len(want) != sha256.Size {
		return nil, &Error{Code: InvalidArgument, Message: "Config.Launch.SHA256 has to be 64 hexadecimal digits, not " + quoted(sum, maxLaunchSeen)}
	}
	if changesRoot(cmd) {
		return nil, &Error{Code: InvalidArgument, Message: "Config.Launch.SHA256 cannot be checked of a command with SysProcAttr.Chroot"}
	}
	path := fromDir(cmd.Dir, cmd.Path)
	if fi, err := os.Stat(path); err == nil && !fi.Mode().IsRegular() { // opening a pipe would wait for its writer
		return nil, &Error{Code: PermissionDenied, Message: "the program is no regular file: " + fi.Mode().String()}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		f.Close()
		return nil, err
	}
	if got := h.Sum(nil); !slices.Equal(got, want) {
		f.Close()
		return nil, &Error{Code: FailedPrecondition, Hint: "it was changed, or is another version",
			Message: fmt.Sprintf("the program's SHA-256 is %x, Config.Launch.SHA256 wants %x", got, want)}
	}
	return f, nil
}

// fromDir returns the file that a command with Dir and Path executes.
func fromDir(dir, path string) string {
	if dir == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// startHint classifies the error of starting the program at path from dir, and
// says what to do about it, or "".
func startHint(dir, path string, err error) (Code, string) {
	file := fromDir(dir, path)
	fi, statErr := os.Stat(file)
	switch {
	case errors.Is(err, exec.ErrNotFound) && filepath.Base(path) != path: // Windows
		return NotFound, "there is no such file with .exe or what else PATHEXT lists"
	case errors.Is(err, exec.ErrNotFound):
		return NotFound, "it is in no directory of PATH; give its path"
	case errors.Is(err, exec.ErrDot):
		return FailedPrecondition, "give its path, beginning with ./"
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(dir); dir != "" && err != nil {
			return NotFound, "the command's Dir is missing: " + plainText(dir, maxLaunchSeen)
		}
		if statErr == nil {
			return NotFound, "the file is there, but not the interpreter or dynamic loader that it needs: it is " + describeProgram(file)
		}
		if !filepath.IsAbs(path) {
			if wd, err := filepath.Abs(dir); err == nil {
				return NotFound, "the path is relative to " + plainText(wd, maxLaunchSeen)
			}
		}
		return NotFound, ""
	case errors.Is(err, fs.ErrPermission):
		switch {
		case statErr != nil:
			return PermissionDenied, "a directory of the path may not be searched"
		case fi.IsDir():
			return PermissionDenied, "it is a directory"
		case fi.Mode()&0o111 == 0:
			return PermissionDenied, "it is not executable: chmod +x"
		}
		return PermissionDenied, "it is not executable for this user, or its file system is mounted noexec"
	case statErr == nil && fi.Mode().IsRegular() && isBadFormat(err):
		return FailedPrecondition, fmt.Sprintf("it is %s; this system is %s/%s", describeProgram(file), runtime.GOOS, runtime.GOARCH)
	}
	return Unavailable, ""
}

// The architectures in the headers of programs, by Go's names.
var (
	elfMachines   = map[uint16]string{3: "386", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 62: "amd64", 183: "arm64", 243: "riscv64", 258: "loong64"}
	peMachines    = map[uint16]string{0x14c: "386", 0x1c4: "arm", 0x8664: "amd64", 0xaa64: "arm64"}
	machOMachines = map[uint32]string{7: "386", 0x01000007: "amd64", 0x0100000c: "arm64"}
)

// describeProgram says what kind of file it is that could not be executed. It
// looks at the few bytes that tell; debug/elf and its like would make every
// host larger.
func describeProgram(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return "not readable"
	}
	defer f.Close()
	b := make([]byte, 256)
	n, _ := io.ReadFull(f, b)
	b = b[:n]
	var order binary.ByteOrder = binary.LittleEndian
	var format, arch string
	switch {
	case n == 0:
		return "empty"
	case strings.HasPrefix(string(b), "#!"):
		interpreter, _, _ := strings.Cut(string(b), "\n")
		return "a script for " + quoted(strings.TrimSpace(interpreter[2:]), maxLaunchSeen)
	case n >= 20 && string(b[:4]) == "\x7fELF":
		if b[5] == 2 {
			order = binary.BigEndian
		}
		format, arch = "an ELF program", elfMachines[order.Uint16(b[18:])]
	case n >= 8 && (order.Uint32(b) == 0xfeedface || order.Uint32(b) == 0xfeedfacf):
		format, arch = "a Mach-O program (macOS)", machOMachines[order.Uint32(b[4:])]
	case n >= 64 && string(b[:2]) == "MZ":
		format = "a PE program (Windows)"
		pe := make([]byte, 6)
		if _, err := f.ReadAt(pe, int64(order.Uint32(b[60:]))); err == nil && string(pe[:4]) == "PE\x00\x00" {
			arch = peMachines[order.Uint16(pe[4:])]
		}
	default:
		return "no program, nor a script that begins with #!"
	}
	if arch == "" {
		arch = "an architecture unknown here"
	}
	return format + " for " + arch
}
