package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/plugwire/plugwire"
)

func doctor(ctx context.Context, args []string, stdout, stderr io.Writer) (status int) {
	var cfg plugwire.Config
	flags := flag.NewFlagSet("plugwire doctor", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, usage)
		flags.PrintDefaults()
	}
	flags.StringVar(&cfg.Launch.MagicCookie, "cookie", "", "the host's Config.Launch.MagicCookie")
	flags.BoolVar(&cfg.Launch.SecretInEnv, "secret-in-env", false, "Config.Launch.SecretInEnv")
	flags.DurationVar(&cfg.Launch.StartTimeout, "start-timeout", 0, "Config.Launch.StartTimeout (default 10s)")
	flags.DurationVar(&cfg.Launch.ExitTimeout, "exit-timeout", 0, "Config.Launch.ExitTimeout (default 5s)")
	flags.Func("transports", "Config.Transports, as in tcp,unix", func(s string) error {
		cfg.Transports = strings.Split(s, ",")
		return nil
	})
	flags.Func("versions", "Config.Versions, as in 1,2", func(s string) error {
		for text := range strings.SplitSeq(s, ",") {
			v, err := strconv.Atoi(text)
			if err != nil {
				return err
			}
			cfg.Versions = append(cfg.Versions, v)
		}
		return nil
	})
	verbose := flags.Bool("v", false, "write the host's log to stderr")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitWell
	case err != nil:
		return exitUsage
	}
	x := &examination{ctx: ctx, out: stdout}
	if flags.NArg() == 0 {
		x.transports(&cfg)
		return x.verdict()
	}
	cmd := exec.Command(flags.Arg(0), flags.Args()[1:]...)
	if cmd.Stderr = stderr; *verbose {
		cmd.Stderr = nil
		cfg.Logger = slog.New(slog.NewTextHandler(stderr, nil))
	}
	x.plugin(cmd, &cfg)
	return x.verdict()
}

// examination prints what it finds, line by line, as soon as it is known.
type examination struct {
	ctx    context.Context
	out    io.Writer
	broken bool
}

// verdict sums up.
func (x *examination) verdict() (status int) {
	if x.broken {
		fmt.Fprint(x.out, "\nIt is broken. docs/TROUBLESHOOTING.md has more about each error.\n")
		return exitBroken
	}
	fmt.Fprint(x.out, "\nAll is well.\n")
	return exitWell
}

func (x *examination) line(mark, step, text string) {
	fmt.Fprintf(x.out, "%-5s %-12s %s\n", mark, step, text)
}

func (x *examination) ok(step, format string, args ...any) {
	x.line("ok", step, fmt.Sprintf(format, args...))
}

func (x *examination) fail(step, text string) {
	x.broken = true
	x.line("FAIL", step, text)
}

// explain prints an error in its parts.
func (x *examination) explain(step string, err error) {
	var e *plugwire.Error
	if !errors.As(err, &e) {
		x.fail(step, err.Error())
		return
	}
	hint, cause := e.Hint, ""
	if e.Err != nil {
		cause = e.Err.Error()
	}
	if inner, ok := e.Err.(*plugwire.Error); ok && hint == "" {
		plain := *inner
		hint, plain.Hint = plain.Hint, ""
		cause = plain.Error()
	}
	cause = strings.TrimPrefix(cause, "plugwire: ")
	what, more := cmp.Or(e.Message, cause), ""
	if i := strings.IndexAny(what, ":;"); e.Op == "launch" && i > 0 { // the phase comes first
		what, more = what[:i], what[i+2:]
	}
	x.fail(step, what)
	for _, part := range [][2]string{{"problem", more}, {"cause", cause}, {"hint", hint}, {"code", e.Code.String()}} {
		if part[1] != "" && part[1] != what {
			x.line("", part[0], part[1])
		}
	}
}

// plugin starts a plugin, looks at it, and ends it.
func (x *examination) plugin(cmd *exec.Cmd, cfg *plugwire.Config) {
	x.file(cmd)
	var started time.Time
	cfg.Launch.OnEvent = func(e plugwire.Event) {
		if e.Kind == plugwire.EventStarting {
			started = time.Now()
			x.line("", "launch", "as a host does, within Config.Launch.StartTimeout")
		}
	}
	p, err := plugwire.Launch(x.ctx, cmd, cfg)
	if err != nil {
		x.explain("launch", err)
		return
	}
	defer p.Close()
	conn := p.Conn()
	x.ok("started", "process %d", p.Pid())
	x.ok("launch line", "it printed one")
	x.ok("transport", "%s", p.Selection().Chosen)
	for row := range strings.Lines(p.Selection().String()) {
		x.line("", "", strings.TrimSuffix(row, "\n"))
	}
	x.ok("connected", "to %v", conn.RemoteAddr())
	version := "the application's version is not negotiated"
	if conn.Version() != 0 {
		version = fmt.Sprintf("version %d of the application's protocol", conn.Version())
	}
	x.ok("handshake", "%s; ready after %v", version, round(time.Since(started)))
	x.ok("peer", "%v", conn.Peer())
	// The methods are announced before the answer to a PING.
	ctx, cancel := context.WithTimeout(x.ctx, patience)
	defer cancel()
	if took, err := conn.Ping(ctx); err != nil {
		x.explain("ping", err)
	} else {
		x.ok("ping", "%v", round(took))
		x.ok("methods", "%s", cmp.Or(strings.Join(conn.Methods(), ", "), "none"))
	}
	closing := time.Now()
	if err := p.Close(); err != nil {
		x.explain("close", err)
		return
	}
	x.ok("close", "it exited with status 0 after %v", round(time.Since(closing)))
}

// patience is how long the answer to a ping may take.
const patience = 10 * time.Second

func round(d time.Duration) time.Duration { return d.Round(time.Microsecond) }

// file says what there is to execute. What is wrong here also makes Launch
// fail, which says more.
func (x *examination) file(cmd *exec.Cmd) {
	fi, err := os.Stat(cmd.Path)
	switch {
	case cmd.Err != nil:
		x.fail("file", cmd.Err.Error())
	case err != nil:
		x.fail("file", err.Error())
	case !fi.Mode().IsRegular():
		x.fail("file", fmt.Sprintf("%s is no regular file: %v", cmd.Path, fi.Mode()))
	case runtime.GOOS != "windows" && fi.Mode()&0o111 == 0:
		x.fail("file", fmt.Sprintf("%s is not executable: %v", cmd.Path, fi.Mode()))
	default:
		x.ok("file", "%s", cmd.Path)
	}
}

// everywhere are the transports that there are on some platform.
var everywhere = []string{"unix", "npipe", "tcp", "systemd"}

// transports tries each transport: those that this platform offers, in order of
// preference, must work; of the others it says why they do not.
func (x *examination) transports(cfg *plugwire.Config) {
	offered := plugwire.Transports()
	rest := slices.DeleteFunc(slices.Clone(everywhere), func(s string) bool { return slices.Contains(offered, s) })
	for _, scheme := range append(offered, rest...) {
		at, took, err := x.try(scheme, cfg)
		switch {
		case err == nil:
			x.ok(scheme, "at %s, a ping takes %v", at, round(took))
		case slices.Contains(rest, scheme):
			if e := (*plugwire.Error)(nil); errors.As(err, &e) {
				plain := *e
				plain.Op, plain.Addr = "", "" // they are known
				err = &plain
			}
			x.line("no", scheme, strings.TrimPrefix(err.Error(), "plugwire: "))
		default:
			x.explain(scheme, err)
		}
	}
	if len(offered) == 0 {
		x.fail("", "this platform offers no transport")
		return
	}
	for _, l := range launchOnly {
		if l.scheme == "socketpair" && !slices.Contains(offered, "unix") {
			x.line("no", l.scheme, "a plugin inherits no socket on "+runtime.GOOS)
		} else if took, err := x.tryLaunch(l.scheme); err != nil {
			x.explain(l.scheme, err)
		} else {
			x.ok(l.scheme, "for %s; a ping takes %v", l.purpose, round(took))
		}
	}
}

// launchOnly are the transports of launches alone, which have to be asked for.
var launchOnly = []struct{ scheme, purpose string }{
	{"socketpair", "plugins that inherit their end, with Config.Transports: nothing listens and no file system has a name"},
	{"stdio", `plugins behind a command such as "ssh HOST PLUGIN", with Config.Transports: stdin and stdout are the connection`},
}

// tryLaunch launches this program as a plugin, and pings.
func (x *examination) tryLaunch(scheme string) (took time.Duration, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	p, err := plugwire.Launch(x.ctx, exec.Command(self, asPlugin), &plugwire.Config{Transports: []string{scheme}})
	if err != nil {
		return 0, err
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(x.ctx, patience)
	defer cancel()
	return p.Conn().Ping(ctx)
}

// try listens with a transport, connects, and pings.
func (x *examination) try(scheme string, cfg *plugwire.Config) (at string, took time.Duration, err error) {
	s := &plugwire.Server{Mux: plugwire.NewMux(), Config: cfg}
	l, err := s.Listen(scheme + ":")
	if err != nil {
		return "", 0, err
	}
	defer l.Close()
	go s.Serve(l)
	defer s.Close()
	ctx, cancel := context.WithTimeout(x.ctx, patience)
	defer cancel()
	at = l.Addr().Network() + ":" + l.Addr().String()
	c, err := plugwire.Dial(ctx, at, cfg)
	if err != nil {
		return at, 0, err
	}
	defer c.Close()
	took, err = c.Ping(ctx)
	return at, took, err
}
