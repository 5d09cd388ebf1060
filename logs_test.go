package plugwire

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func init() {
	behaviours["prints"] = func() {
		os.Stdout.WriteString("before\n" + `{"level":"WARN","msg":"a record before"}` + "\nand 50%") // the launch line follows at once
		must(ServePlugin(testLogMux(), nil))
	}
}

// testLogMux is testPluginMux, and prints its requests.
func testLogMux() *Mux {
	mux := testPluginMux()
	mux.HandleFunc("stderr", func(ctx context.Context, text []byte) ([]byte, error) {
		_, err := os.Stderr.Write(text)
		return nil, err
	})
	return mux
}

// logBook keeps what a handler writes, without what differs from run to run.
type logBook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// lines returns the records but for those of events, which have tests of their own.
func (b *logBook) lines() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(strings.Split(strings.TrimSuffix(b.text.String(), "\n"), "\n"), func(line string) bool {
		return strings.Contains(line, `"msg":"plugwire: plugin `)
	})
}

func (b *logBook) logger(without ...string) *slog.Logger {
	return slog.New(slog.NewJSONHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug - 10, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		for _, key := range without {
			if a.Key == key && len(groups) == 0 {
				return slog.Attr{}
			}
		}
		return a
	}}))
}

// logged returns the records of what is printed, in pieces of n bytes.
func logged(output string, n int, cfg *Config) []string {
	var book logBook
	withLogger := *cfg
	withLogger.Logger = book.logger("time", "plugin", "pid")
	_, l := outputLogs(nil, &withLogger, nil)
	l.start(1)
	for len(output) > 0 {
		piece := output[:min(n, len(output))]
		output = output[len(piece):]
		l.write([]byte(piece))
	}
	l.end()
	<-l.done
	return book.lines()
}

func TestPluginLogLines(t *testing.T) {
	deep := strings.Repeat(`{"a":`, maxLogDepth) + "1" + strings.Repeat("}", maxLogDepth)
	for _, test := range []struct {
		line string
		want string // of the records, but for the time
	}{
		// Text.
		{"plain", `{"level":"INFO","msg":"plain"}`},
		{"  indented\t\r", `{"level":"INFO","msg":"  indented"}`},
		{"", ""},
		{"\x1b[31mred\x00\xff\x7f \u202eé", `{"level":"INFO","msg":"\\x1b[31mred\\x00\\xff\\x7f \\u202eé"}`},
		{strings.Repeat("x", maxLogLine), `{"level":"INFO","msg":"` + strings.Repeat("x", maxLogLine) + `"}`},
		{strings.Repeat("x", 10<<20), `{"level":"INFO","msg":"` + strings.Repeat("x", maxLogLine) + cutMark + `"}`},
		// Records.
		{`{"time":"2025-01-02T15:04:05.678Z","level":"WARN","msg":"m","b":1,"a":"x","g":{"z":true,"y":null},"l":[1,{"k":2.5}],"f":1e3,"big":1e999}`,
			`{"level":"WARN","msg":"m","b":1,"a":"x","g":{"z":true,"y":null},"l":[1,{"k":2.5}],"f":1000,"big":"1e999"}`},
		{`{"level":"ERROR+2","msg":"m"}`, `{"level":"ERROR+2","msg":"m"}`},
		{`{"@level":"trace","@message":"m","@module":"db","@timestamp":"2025-01-02T15:04:05.000000Z","n":9007199254740993}`,
			`{"level":"DEBUG-4","msg":"m","module":"db","n":9007199254740993}`},
		{`{"level":"info","ts":1.5,"msg":"zap"}`, `{"level":"INFO","msg":"zap","ts":1.5}`},
		{`{"level":"fatal","message":"zerolog"}`, `{"level":"ERROR+4","msg":"zerolog"}`},
		{`{"level":"warning","msg":"logrus\nforged \u001b[2J"}`, `{"level":"WARN","msg":"logrus\\nforged \\x1b[2J"}`},
		{`{"level":"INFO","msg":"m","time":"yesterday","msg":"again","plugin":"other","pid":1,"k\n":1}`,
			`{"level":"INFO","msg":"m","plugin.time":"yesterday","plugin.msg":"again","plugin.plugin":"other","plugin.pid":1,"k\\n":1}`},
		// Almost records.
		{`{"@message":1}`, `{"level":"INFO","msg":"{\"@message\":1}"}`},
		{`{"level":"INFO","msg":1}`, `{"level":"INFO","msg":"{\"level\":\"INFO\",\"msg\":1}"}`},
		{`{"level":"LOUD","msg":"m"}`, `{"level":"INFO","msg":"{\"level\":\"LOUD\",\"msg\":\"m\"}"}`},
		{`{"msg":"m"}`, `{"level":"INFO","msg":"{\"msg\":\"m\"}"}`},
		{`{"level":"INFO","msg":"m"} {}`, `{"level":"INFO","msg":"{\"level\":\"INFO\",\"msg\":\"m\"} {}"}`},
		{`{"level":"INFO","msg":"m"`, `{"level":"INFO","msg":"{\"level\":\"INFO\",\"msg\":\"m\""}`},
		{`{"level":"INFO","msg":"m",}`, `{"level":"INFO","msg":"{\"level\":\"INFO\",\"msg\":\"m\",}"}`},
		{`{}`, `{"level":"INFO","msg":"{}"}`},
		{`{]}`, `{"level":"INFO","msg":"{]}"}`},
		{`{"level":"INFO","msg":"m","deep":` + deep + `}`, `{"level":"INFO","msg":"{\"level\":\"INFO\",\"msg\":\"m\",\"deep\":` +
			strings.ReplaceAll(deep, `"`, `\"`) + `}"}`},
		{`{"level":"INFO","msg":"m","many":[` + strings.Repeat("0,", maxLogValues) + `0]}`,
			`{"level":"INFO","msg":"{\"level\":\"INFO\",\"msg\":\"m\",\"many\":[` + strings.Repeat("0,", maxLogValues) + `0]}"}`},
	} {
		for _, n := range []int{7, 32 << 10} {
			got := logged(test.line+"\nlast", n, new(Config))
			want := []string{test.want, `{"level":"INFO","msg":"last"}`}
			if test.want == "" {
				want = want[1:]
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%.80q in pieces of %d:\ngot  %.300q\nwant %.300q", test.line, n, got, want)
			}
		}
	}
}

func TestPluginLogKeepsTheRecordsTime(t *testing.T) {
	const line = `{"level":"INFO","msg":"m","time":"2025-01-02T15:04:05.678+01:00"}`
	r, ok := parseLogRecord([]byte(line))
	if want := time.Date(2025, 1, 2, 14, 4, 5, 678e6, time.UTC); !ok || !r.Time.Equal(want) {
		t.Fatalf("%v, %v", r.Time, ok)
	}
}

func TestPluginLogLevels(t *testing.T) {
	stack := "goroutine 7 [running]:\nmain.f(0x1)\n\t/src/f.go:1 +0x1\ncreated by main.g in goroutine 1\n\t/src/g.go:2 +0x2\n"
	for _, test := range []struct {
		name, output string
		level        slog.Level
		want         string // I: Info, W: Warn, E: Error, a letter for each record
	}{
		{"text", "a\ngoroutine of mine\ngoroutine 7\n", 0, "III"},
		{"at the level of the configuration", "a\n", slog.LevelWarn, "W"},
		{"panic", "a\npanic: boom\n\n" + stack + "exit status 2\n", 0, "IEEEEEEE"},
		{"fatal error", "fatal error: all goroutines are asleep\nanything\n", 0, "EE"},
		{"stack of a panic that was recovered", "a\n" + stack + "a\n", 0, "IEEEEEI"},
		{"panic that a record follows", "panic: not mine\nx\n" + `{"level":"INFO","msg":"m"}` + "\na\n", 0, "EEII"},
		{"panic in the middle of a line", "a panic: no\n", 0, "I"},
	} {
		cfg := &Config{Launch: LaunchConfig{LogLevel: test.level}}
		var got strings.Builder
		for _, line := range logged(test.output, 10, cfg) {
			var r struct{ Level string }
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatal(err)
			}
			got.WriteString(r.Level[:1])
		}
		if got.String() != test.want {
			t.Errorf("%s: %s, want %s", test.name, got.String(), test.want)
		}
	}
}

// TestLaunchedPluginsOutputIsLogged: what comes before the launch line, on both
// pipes, and what a plugin prints later.
func TestLaunchedPluginsOutputIsLogged(t *testing.T) {
	var book logBook
	lt := newLaunchTest(t, "prints")
	lt.cmd.Path, lt.cmd.Args = os.Args[0], []string{"an-argument"}
	lt.cfg.Logger = book.logger("time")
	p := lt.launch()
	if _, err := p.Call(t.Context(), "stderr", []byte("a line\n"+`{"level":"ERROR","msg":"a record","n":1}`+"\nno line end")); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	who := fmt.Sprintf(`"plugin":"%s","pid":%d`, book.pluginName(t), p.Pid())
	want := map[string]bool{
		`{"level":"INFO","msg":"before",` + who + `}`:          true,
		`{"level":"WARN","msg":"a record before",` + who + `}`: true,
		`{"level":"INFO","msg":"and 50%",` + who + `}`:         true,
		`{"level":"INFO","msg":"a line",` + who + `}`:          true,
		`{"level":"ERROR","msg":"a record",` + who + `,"n":1}`: true,
		`{"level":"INFO","msg":"no line end",` + who + `}`:     true,
	}
	got := book.lines()
	for _, line := range got {
		if !want[line] {
			t.Errorf("unexpected: %s", line)
		}
		delete(want, line)
	}
	if len(want) > 0 {
		t.Errorf("got %q\nmissing %v", got, want)
	}
}

// pluginName returns what the first record says of the plugin, which must be
// the name of this program.
func (b *logBook) pluginName(t *testing.T) string {
	var r struct{ Plugin string }
	if err := json.Unmarshal([]byte(b.lines()[0]), &r); err != nil {
		t.Fatal(err)
	}
	if r.Plugin == "" || strings.ContainsAny(r.Plugin, `/\`) || !strings.HasSuffix(os.Args[0], r.Plugin) {
		t.Errorf("the plugin %s is called %q", os.Args[0], r.Plugin)
	}
	return r.Plugin
}

func TestCrashOfAPluginIsLoggedAsErrors(t *testing.T) {
	var book logBook
	lt := newLaunchTest(t, "crashes")
	lt.cfg.Logger = book.logger("time", "plugin", "pid")
	if _, err := Launch(t.Context(), lt.cmd, lt.cfg); err == nil {
		t.Fatal("it was launched")
	}
	lines := book.lines()
	if lines[0] != `{"level":"ERROR","msg":"panic: boom"}` || len(lines) < 3 {
		t.Errorf("%q", lines)
	}
	for _, line := range lines {
		if !strings.Contains(line, `"level":"ERROR"`) {
			t.Error(line)
		}
	}
}

// stuckHandler is the handler of a Logger that waits before each record.
type stuckHandler struct {
	slog.Handler
	wait func()
}

func (h *stuckHandler) Handle(ctx context.Context, r slog.Record) error {
	h.wait()
	return h.Handler.Handle(ctx, r)
}

func (h *stuckHandler) WithAttrs([]slog.Attr) slog.Handler { return h }

// TestStuckLoggerDoesNotHoldUpThePlugin: it prints far more than pipe and buffer
// take, and the log says in the end what is missing.
func TestStuckLoggerDoesNotHoldUpThePlugin(t *testing.T) {
	var book logBook
	release := make(chan struct{})
	lt := newLaunchTest(t, "prints")
	lt.cfg.Logger = slog.New(&stuckHandler{book.logger("time").Handler(), func() { <-release }})
	p := lt.launch()
	var text bytes.Buffer
	const lines = 100_000
	for i := range lines {
		fmt.Fprintf(&text, "line %d of the plugin\n", i)
	}
	if _, err := p.Call(t.Context(), "stderr", text.Bytes()); err != nil {
		t.Error(err)
	}
	lt.greets(p)
	log := p.cur.Load().proc.stderr.log
	log.mu.Lock()
	if n := cap(log.pending); n > 2*logBuffer {
		t.Errorf("%d bytes wait", n)
	}
	log.mu.Unlock()
	close(release)
	eventually(t, func() bool { return strings.Contains(strings.Join(book.lines(), "\n"), "lines were dropped") })
	// What is printed from now on is logged again.
	if _, err := p.Call(t.Context(), "stderr", []byte("\nafterwards\n")); err != nil {
		t.Error(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	<-log.done
	var got, lost int
	for _, line := range book.lines() {
		var r struct {
			Msg   string
			Lines int
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		lost += r.Lines
		var i int
		if n, _ := fmt.Sscanf(r.Msg, "line %d of the plugin", &i); n == 1 && r.Msg == fmt.Sprintf("line %d of the plugin", i) {
			got++
		}
	}
	t.Logf("%d lines logged, %d dropped", got, lost)
	if got == 0 || lost == 0 || got+lost != lines {
		t.Errorf("%d lines logged and %d said to be dropped, of %d", got, lost, lines)
	}
	if all := strings.Join(book.lines(), "\n"); !strings.Contains(all, `"msg":"afterwards"`) {
		t.Error("nothing is logged afterwards")
	}
}

func init() { waitingLaunches["StuckLoggerDoesNotHoldUpClose"] = testStuckLoggerDoesNotHoldUpClose }

func testStuckLoggerDoesNotHoldUpClose(t *testing.T) {
	release := make(chan struct{})
	lt := newParallelLaunchTest(t, "prints")
	lt.cfg.Logger = slog.New(&stuckHandler{new(logBook).logger().Handler(), func() { <-release }})
	p := lt.launch()
	start := time.Now()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("Close took %v", took)
	}
	close(release)
	<-p.cur.Load().proc.stderr.log.done
}

func FuzzLogLine(f *testing.F) {
	for _, line := range []string{"plain", `{"time":"2025-01-02T15:04:05Z","level":"INFO","msg":"m","a":[1,{"b":null}]}`,
		`{"@level":"warn","@message":"m","@timestamp":"2025-01-02T15:04:05Z"}`, `{"@message":1}`,
		`{"level":"INFO","msg":"\ud83d\ude00\ud83d \u00e9\/\b","a":["\n",{"k":[1.50,true],"k":{}},[],"\udc00\ud800x"]}`, "panic: x\n\ngoroutine 1 [running]:\n",
		"1|0|unix|/tmp/p|plugwire|\n", "\xff\x00{", strings.Repeat(`{"level":"INFO","msg":"`, 3)} {
		f.Add([]byte(line), uint8(3))
	}
	f.Fuzz(func(t *testing.T, output []byte, piece uint8) {
		whole := logged(string(output), len(output)+1, new(Config))
		if pieces := logged(string(output), int(piece)+1, new(Config)); !reflect.DeepEqual(whole, pieces) {
			t.Fatalf("whole: %q\nin pieces: %q", whole, pieces)
		}
		if n := bytes.Count(output, []byte("\n")) + 1; len(whole) > n {
			t.Fatalf("%d records of %d lines", len(whole), n)
		}
		for line := range bytes.Lines(output) {
			sameFields(t, bytes.TrimSpace(line))
		}
		for _, line := range whole {
			var r struct{ Msg string }
			if err := json.Unmarshal([]byte(line), &r); line != "" && err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			if strings.ContainsAny(r.Msg, "\x00\x1b\n\r") || len(r.Msg) > 10*maxLogLine {
				t.Fatalf("a message that is not fit to print: %q", r.Msg)
			}
		}
	})
}

// sameFields checks that logGroup finds in an object what encoding/json does.
func sameFields(t *testing.T, object []byte) {
	var want map[string]any
	if len(object) == 0 || object[0] != '{' || tooRich(object) || json.Unmarshal(object, &want) != nil {
		return
	}
	d := json.NewDecoder(bytes.NewReader(object))
	d.UseNumber()
	var exact map[string]any
	if err := d.Decode(&exact); err != nil {
		t.Fatal(err)
	}
	got := make(map[string]slog.Value)
	for _, a := range logGroup(string(object)) {
		got[a.Key] = a.Value
	}
	if len(got) != len(want) {
		t.Fatalf("%q: %v, want %v", object, got, want)
	}
	for key, w := range want {
		g, ok := got[key]
		switch w := w.(type) {
		case string:
			ok = ok && g.Kind() == slog.KindString && g.String() == w
		case float64:
			ok = ok && (g.Kind() == slog.KindInt64 && float64(g.Int64()) == w || g.Kind() == slog.KindFloat64 && g.Float64() == w)
		case map[string]any:
			ok = ok && g.Kind() == slog.KindGroup
		case []any:
			ok = ok && reflect.DeepEqual(g.Any(), exact[key])
		default:
			ok = ok && g.Any() == w
		}
		if !ok {
			t.Fatalf("%q: %q is %v, want %v", object, key, g, w)
		}
	}
}

// TestStuckLoggerLosesWholeLines goes through the states of a full buffer.
func TestStuckLoggerLosesWholeLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var book logBook
		release := make(chan struct{})
		_, l := outputLogs(nil, &Config{Logger: slog.New(&stuckHandler{book.logger("time", "plugin", "pid").Handler(), func() { <-release }})}, nil)
		l.start(1)
		l.write([]byte("first\n"))
		synctest.Wait()
		fill := strings.Repeat("x", 999) + "\n"
		for range logBuffer / len(fill) {
			l.write([]byte(fill))
		}
		start := time.Now()
		l.write([]byte(fill)) // no room
		if waited := time.Since(start); waited != logPatience {
			t.Errorf("waited %v", waited)
		}
		l.write([]byte("small enough, but behind what was lost\n"))
		l.write([]byte("torn, the beginning"))
		if waited := time.Since(start); waited != logPatience {
			t.Errorf("waited again: %v", waited)
		}
		close(release)
		synctest.Wait()
		l.write([]byte(" and the end\nafterwards\n"))
		l.end()
		got := book.lines()
		const lost = `{"level":"WARN","msg":"plugwire: Config.Logger is too slow for what the plugin prints: lines were dropped","lines":`
		want := []string{`{"level":"INFO","msg":"first"}`}
		for range logBuffer / len(fill) {
			want = append(want, `{"level":"INFO","msg":"`+fill[:999]+`"}`)
		}
		want = append(want, lost+"2}", `{"level":"INFO","msg":"afterwards"}`, lost+"1}")
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%d records, want %d; the last are %.200q", len(got), len(want), got[max(0, len(got)-3):])
		}
	})
}

// TestEndOfAPluginWaitsForItsLog, while the Logger goes on.
func TestEndOfAPluginWaitsForItsLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var book logBook
		slow := func() { time.Sleep(logPatience / 2) }
		_, l := outputLogs(nil, &Config{Logger: slog.New(&stuckHandler{book.logger("time", "plugin", "pid").Handler(), slow})}, nil)
		l.start(1)
		l.write([]byte("last words"))
		l.end()
		if got := book.lines(); got[0] != `{"level":"INFO","msg":"last words"}` {
			t.Errorf("%q", got)
		}
	})
}
