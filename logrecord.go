package plugwire

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// This file reads lines that are log records in JSON: of log/slog,
//
//	{"time":"2025-01-02T15:04:05Z","level":"INFO","msg":"ready","port":80}
//
// of hclog (https://github.com/hashicorp/go-hclog), whose own keys begin with
// '@', and of others that say "level" and "msg" or "message". A line that has not both as strings,
// and one that is not JSON to its end, or too rich, is no record but text.

const (
	maxLogDepth  = 16   // of objects and arrays within each other in a record
	maxLogValues = 1024 // in a record, in all of them
)

// The attributes that say who printed a record.
const (
	logPlugin = "plugin"
	logPid    = "pid"
)

// reservedLogKeys are those that a handler, or outputLog, gives records itself.
// A plugin's fields of these names are prefixed with "plugin.".
var reservedLogKeys = map[string]bool{slog.TimeKey: true, slog.LevelKey: true, slog.MessageKey: true, slog.SourceKey: true,
	logPlugin: true, logPid: true}

// parseLogRecord reads a line, and reports whether it is a record.
func parseLogRecord(line []byte) (slog.Record, bool) {
	line = bytes.TrimLeft(line, " \t")
	if len(line) == 0 || line[0] != '{' || tooRich(line) || !json.Valid(line) {
		return slog.Record{}, false
	}
	var when time.Time
	var level slog.Level
	var msg string
	var hasLevel, hasMsg bool
	fields := logGroup(string(line))
	rest := fields[:0]
	for _, a := range fields {
		text, isText := "", a.Value.Kind() == slog.KindString
		if isText {
			text = a.Value.String()
		}
		switch a.Key {
		case "level", "@level":
			if !hasLevel && isText {
				if level, hasLevel = parseLogLevel(text); hasLevel {
					continue
				}
			}
		case "msg", "@message", "message":
			if !hasMsg && isText {
				msg, hasMsg = text, true
				continue
			}
		case "time", "@timestamp":
			if when.IsZero() && isText {
				if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
					when = t
					continue
				}
			}
		}
		a.Key = visible(strings.TrimPrefix(a.Key, "@"), false)
		if reservedLogKeys[a.Key] {
			a.Key = logPlugin + "." + a.Key
		}
		rest = append(rest, a)
	}
	if !hasLevel || !hasMsg {
		return slog.Record{}, false
	}
	if when.IsZero() {
		when = time.Now()
	}
	r := slog.NewRecord(when, level, visible(msg, false), 0)
	r.AddAttrs(rest...)
	return r, true
}

// parseLogLevel reads a level's name.
func parseLogLevel(s string) (level slog.Level, ok bool) {
	switch strings.ToLower(s) {
	case "trace":
		return slog.LevelDebug - 4, true
	case "warning":
		return slog.LevelWarn, true
	case "fatal", "panic", "dpanic", "critical":
		return slog.LevelError + 4, true
	}
	return level, level.UnmarshalText([]byte(s)) == nil
}

// tooRich reports whether JSON text has more values, or more within each other,
// than a record may have. Of what is no JSON it says anything.
func tooRich(line []byte) bool {
	depth, values, quoted := 0, 0, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '"':
			quoted = !quoted
		case quoted:
			if c == '\\' {
				i++
			}
		case c == '{' || c == '[':
			values++
			if depth++; depth > maxLogDepth {
				return true
			}
		case c == '}' || c == ']':
			depth--
		case c == ',':
			values++
		}
	}
	return values > maxLogValues
}

// The functions below read JSON that json.Valid accepts: encoding/json would
// lose the order of fields, or take a hundred allocations to keep it. What they
// return shares the memory of the text.

// logGroup returns the fields of an object, in their order.
func logGroup(object string) []slog.Attr {
	attrs := make([]slog.Attr, 0, 8)
	for rest := object[1 : len(object)-1]; ; {
		var key, value string
		if key, rest = cutJSON(rest); key == "" {
			return attrs
		}
		value, rest = cutJSON(rest)
		attrs = append(attrs, slog.Attr{Key: logString(key), Value: logValue(value)})
	}
}

func logValue(text string) slog.Value {
	switch text[0] {
	case '"':
		return slog.StringValue(logString(text))
	case '{':
		return slog.GroupValue(logGroup(text)...)
	case '[':
		return slog.AnyValue(logAny(text))
	case 't', 'f':
		return slog.BoolValue(text[0] == 't')
	case 'n':
		return slog.AnyValue(nil)
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return slog.Int64Value(n)
	}
	if f, err := strconv.ParseFloat(text, 64); err == nil {
		return slog.Float64Value(f)
	}
	return slog.StringValue(text) // a number beyond what float64 holds
}

// logAny returns what encoding/json makes of a value, with numbers as they are
// written. (Its decoder would add a tenth to the size of a small host.)
func logAny(text string) any {
	switch text[0] {
	case '[':
		list := []any{}
		for value, rest := cutJSON(text[1 : len(text)-1]); value != ""; value, rest = cutJSON(rest) {
			list = append(list, logAny(value))
		}
		return list
	case '{':
		object := map[string]any{}
		for key, rest := cutJSON(text[1 : len(text)-1]); key != ""; key, rest = cutJSON(rest) {
			var value string
			value, rest = cutJSON(rest)
			object[logString(key)] = logAny(value)
		}
		return object
	case '"':
		return logString(text)
	case 't', 'f':
		return text[0] == 't'
	case 'n':
		return nil
	}
	return json.Number(text)
}

func logString(text string) string {
	text = text[1 : len(text)-1]
	if strings.IndexByte(text, '\\') < 0 && utf8.ValidString(text) {
		return text
	}
	b := make([]byte, 0, len(text))
	for text != "" {
		if text[0] == '\\' {
			var r rune
			r, text = unescapeJSON(text[1:])
			b = utf8.AppendRune(b, r)
			continue
		}
		r, size := utf8.DecodeRuneInString(text) // U+FFFD for what is no UTF-8
		b, text = utf8.AppendRune(b, r), text[size:]
	}
	return string(b)
}

// unescapeJSON returns the character that the escape sequence means whose
// backslash was before s, and what follows it.
func unescapeJSON(s string) (rune, string) {
	if s[0] != 'u' {
		const escapes, characters = `bfnrt`, "\b\f\n\r\t"
		if i := strings.IndexByte(escapes, s[0]); i >= 0 {
			return rune(characters[i]), s[1:]
		}
		return rune(s[0]), s[1:] // itself
	}
	unit := func(s string) rune {
		n, _ := strconv.ParseUint(s, 16, 16)
		return rune(n)
	}
	r, s := unit(s[1:5]), s[5:]
	if utf16.IsSurrogate(r) {
		if strings.HasPrefix(s, `\u`) {
			if pair := utf16.DecodeRune(r, unit(s[2:6])); pair != utf8.RuneError {
				return pair, s[6:]
			}
		}
		r = utf8.RuneError
	}
	return r, s
}

// cutJSON returns the text of the first of the values in s, which commas or
// colons separate, and what follows it; or "" when there is none.
func cutJSON(s string) (value, rest string) {
	const between = " \t\r\n,:"
	for s != "" && strings.IndexByte(between, s[0]) >= 0 {
		s = s[1:]
	}
	depth, quoted := 0, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			quoted = !quoted
		case quoted:
			if c == '\\' {
				i++
			}
			continue
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			depth--
		case depth == 0 && strings.IndexByte(between, c) >= 0:
			return s[:i], s[i:]
		}
	}
	return s, ""
}

// visible returns s with what is not printable escaped as in Go's strings, but
// for tabs if they are allowed.
func visible(s string, tabs bool) string {
	var b []byte
	var escaped [16]byte
	from := 0 // b has what stands before
	for i, r := range s {
		if ' ' <= r && r < 0x7f || tabs && r == '\t' {
			continue
		}
		size := utf8.RuneLen(r)
		if r == utf8.RuneError {
			_, size = utf8.DecodeRuneInString(s[i:]) // 1 where it stands for a byte that is no UTF-8
		}
		if strconv.IsPrint(r) && (r != utf8.RuneError || size > 1) {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + size
		quoted := strconv.AppendQuote(escaped[:0], s[i:from])
		b = append(b, quoted[1:len(quoted)-1]...)
	}
	if b == nil {
		return s
	}
	return string(append(b, s[from:]...))
}
