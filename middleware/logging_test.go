package middleware

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plugwire/plugwire"
)

// records gathers what a JSON logger writes, one line for each record.
type records struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (r *records) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.Write(b)
}

// next returns the only record since the last call.
func (r *records) next(t *testing.T) (text string, fields map[string]any) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	text = r.buf.String()
	r.buf.Reset()
	if err := json.Unmarshal([]byte(text), &fields); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return text, fields
}

func TestLoggingRecords(t *testing.T) {
	const secret = "hunter2"
	results := map[string]func(r *plugwire.Request, reply []byte) ([]byte, error){
		"fine":    func(r *plugwire.Request, reply []byte) ([]byte, error) { return append(reply, r.Payload()...), nil },
		"nothing": func(r *plugwire.Request, reply []byte) ([]byte, error) { return nil, nil },
		"plain":   func(r *plugwire.Request, reply []byte) ([]byte, error) { return r.Payload(), errors.New("plain text") },
		"typed": func(r *plugwire.Request, reply []byte) ([]byte, error) {
			return reply, &plugwire.Error{Code: plugwire.NotFound, Message: "no such greeting", Detail: []byte(secret)}
		},
		"own": func(r *plugwire.Request, reply []byte) ([]byte, error) {
			return reply, &plugwire.Error{Code: 300, Message: "ours"}
		},
		"ok": func(r *plugwire.Request, reply []byte) ([]byte, error) {
			return reply, &plugwire.Error{Message: "never a success"}
		},
		"late": func(r *plugwire.Request, reply []byte) ([]byte, error) { return reply, context.DeadlineExceeded },
		"long": func(r *plugwire.Request, reply []byte) ([]byte, error) {
			return reply, errors.New(strings.Repeat("x", 100<<10))
		},
		"panics": func(r *plugwire.Request, reply []byte) ([]byte, error) { panic("on purpose") },
		"exits":  func(r *plugwire.Request, reply []byte) ([]byte, error) { runtime.Goexit(); return nil, nil },
		"refused": func(r *plugwire.Request, reply []byte) ([]byte, error) {
			return nil, plugwire.Refused(plugwire.ResourceExhausted, "full")
		},
	}
	overTransports(t, func(t *testing.T, addr string) {
		var log records
		mux := plugwire.NewMux()
		for name, h := range results {
			mux.Handle(name, plugwire.HandlerFunc(h))
		}
		mux.Fallback(plugwire.HandlerFunc(results["fine"]))
		mux.Use(Logging(slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})), nil))
		c := serve(t, addr, mux, nil)()
		for _, test := range []struct {
			method, level, code, err string
			out                      float64
		}{
			{"fine", "INFO", "OK", "", 7},
			{"nothing", "INFO", "OK", "", 0},
			{"by name", "INFO", "OK", "", 7},
			{"plain", "ERROR", "Unknown", "plain text", 0},
			{"typed", "INFO", "NotFound", "plugwire: no such greeting", 0},
			{"own", "INFO", "Code(300)", "plugwire: ours", 0},
			{"ok", "ERROR", "Unknown", "plugwire: never a success", 0},
			{"late", "WARN", "DeadlineExceeded", "context deadline exceeded", 0},
			{"long", "ERROR", "Unknown", strings.Repeat("x", maxErrorText), 0},
			{"panics", "ERROR", "Internal", "the handler panicked or ended its goroutine", 0},
			{"exits", "ERROR", "Internal", "the handler panicked or ended its goroutine", 0},
			{"refused", "WARN", "ResourceExhausted", "plugwire: full", 0},
		} {
			for _, oneWay := range []bool{false, true} {
				if oneWay {
					if err := errors.Join(c.Notify(background, test.method, []byte(secret)), c.Flush(background)); err != nil {
						t.Fatal(err)
					}
				} else {
					_, err := c.Call(background, test.method, []byte(secret))
					if got := plugwire.CodeOf(err).String(); got != test.code {
						t.Errorf("%s: the caller has code %v, the record %v", test.method, got, test.code)
					}
				}
				text, got := log.next(t)
				if strings.Contains(text, secret) {
					t.Errorf("a payload is logged: %s", text)
				}
				want := map[string]any{"msg": "plugwire: call", "level": test.level, "method": test.method,
					"code": test.code, "bytes_in": 7.0, "bytes_out": test.out}
				if test.err != "" {
					want["error"] = test.err
				}
				if oneWay {
					want["one_way"], want["bytes_out"] = true, 0.0
				}
				peer, _ := got["peer"].(map[string]any)
				if addr == "unix:" && (peer["uid"] != float64(os.Geteuid()) || peer["transport"] != "unix" || runtime.GOOS == "linux" && peer["pid"] != float64(os.Getpid())) ||
					addr == "tcp:" && (len(peer) != 1 || peer["transport"] != "tcp") {
					t.Errorf("peer %v", peer)
				}
				if d, ok := got["duration"].(float64); !ok || d < 0 || d > float64(time.Minute) {
					t.Errorf("duration %v", got["duration"])
				}
				delete(got, "time")
				delete(got, "duration")
				delete(got, "peer")
				for k, v := range want {
					if got[k] != v {
						t.Errorf("%s, one-way %v: %s is %.100v, want %.100v", test.method, oneWay, k, got[k], v)
					}
					delete(got, k)
				}
				if len(got) != 0 {
					t.Errorf("%s, one-way %v: further fields %v", test.method, oneWay, got)
				}
			}
		}
	})
}

// contextHandler shows what a slog.Handler finds in a record's context.
type contextHandler struct {
	slog.Handler
	seen chan *plugwire.Info
}

func (h contextHandler) Handle(ctx context.Context, r slog.Record) error {
	info, _ := plugwire.InfoFromContext(ctx)
	h.seen <- info
	return h.Handler.Handle(ctx, r)
}

func TestRecordsHaveTheRequestsContext(t *testing.T) {
	overTransports(t, func(t *testing.T, addr string) {
		seen := make(chan *plugwire.Info, 2)
		mux := plugwire.NewMux()
		mux.Handle("m", empty)
		mux.Use(Logging(slog.New(contextHandler{slog.NewTextHandler(io.Discard, nil), seen}), nil))
		c := serve(t, addr, mux, nil)()
		if _, err := c.Call(background, "m", nil); err != nil {
			t.Fatal(err)
		}
		if info := receive(t, "the record", seen); info == nil || info.Method != "m" {
			t.Errorf("%+v", info)
		}
	})
}

func TestLoggingTakesALevel(t *testing.T) {
	overTransports(t, func(t *testing.T, addr string) {
		var log records
		mux := plugwire.NewMux()
		mux.Handle("m", empty)
		mux.HandleFunc("fails", func(context.Context, []byte) ([]byte, error) { return nil, errors.New("so it is") })
		quiet := func(code plugwire.Code) slog.Level {
			if code == plugwire.OK {
				return slog.LevelDebug
			}
			return LevelOf(code)
		}
		mux.Use(Logging(slog.New(slog.NewJSONHandler(&log, nil)), quiet), Logging(nil, nil))
		c := serve(t, addr, mux, nil)()
		for range 3 {
			if _, err := c.Call(background, "m", nil); err != nil {
				t.Fatal(err)
			}
		}
		c.Call(background, "fails", nil)
		if _, got := log.next(t); got["method"] != "fails" {
			t.Errorf("%v", got)
		}
	})
}

func TestLevelOfEveryCode(t *testing.T) {
	for code, want := range map[plugwire.Code]slog.Level{
		plugwire.OK: slog.LevelInfo, plugwire.NotFound: slog.LevelInfo, plugwire.Unauthenticated: slog.LevelInfo,
		plugwire.Unavailable: slog.LevelWarn, plugwire.ResourceExhausted: slog.LevelWarn,
		plugwire.Unknown: slog.LevelError, plugwire.Internal: slog.LevelError, plugwire.DataLoss: slog.LevelError,
		plugwire.Unimplemented: slog.LevelError, 17: slog.LevelError, 255: slog.LevelError, 256: slog.LevelInfo, 65535: slog.LevelInfo,
	} {
		if got := LevelOf(code); got != want {
			t.Errorf("%v: %v, want %v", code, got, want)
		}
	}
}

func TestLoggingAllocatesNothingWhenDisabled(t *testing.T) {
	l := slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelError + 1}))
	h, r := Logging(l, nil)(empty), new(plugwire.Request)
	noAllocations(t, "disabled", func() { h.ServeCall(r, nil) })
}
