package plugwire

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// This file owns the launch line: the one line that a plugin prints on its
// stdout when it is ready. It has go-plugin's form,
//
//	CORE|APP|NETWORK|ADDRESS|PROTOCOL|CERT|key=value|key=value...
//
// for instance 1|0|unix|/tmp/plugwire-123/plugin.sock|plugwire|
//
// CORE is 1, APP the chosen version of the application's protocol (0: not
// negotiated), NETWORK the scheme of the address and ADDRESS the rest of it,
// PROTOCOL is plugwire (go-plugin's own are netrpc and grpc), CERT is the pin of the
// plugin's key (see keyPin) or empty. Fields that the reader does not know are ignored. In ADDRESS and in values, control
// characters, '|' and '%' are written as %XX. A plugin that cannot serve says
// why with an empty NETWORK and ADDRESS and the fields code and error.
// See https://github.com/hashicorp/go-plugin/blob/main/docs/internals.md.

const (
	launchCore     = 1
	launchProtocol = "plugwire"

	maxLaunchLine = 16 << 10 // bytes of one line; of a longer one only the end is looked at
	maxLaunchScan = 1 << 20  // bytes of stdout in which the line must be
	maxLaunchSeen = 200      // bytes of other output that an error quotes
)

// The fields after CERT.
const (
	lineError = "error" // why the plugin cannot serve
	lineCode  = "code"  // the Code of that, in decimal
	lineSkip  = "skip." // + scheme: why this transport was passed over

	lineSecret   = "secret" // noLineSecret: the plugin did not get the one-time secret
	noLineSecret = "none"
)

// launchLine is a launch line's content, unescaped.
type launchLine struct {
	app     int
	network string
	address string
	cert    string
	fields  []launchField
}

// launchField is one key=value of a launch line or of PLUGWIRE_LAUNCH.
type launchField struct{ key, value string }

// errNoLaunchLine means: this is some other line.
var errNoLaunchLine = errors.New("plugwire: not a launch line")

// String formats the line, without a line end.
func (l *launchLine) String() string {
	b := fmt.Appendf(nil, "%d|%d|%s|", launchCore, l.app, l.network)
	b = appendEscaped(b, l.address)
	b = append(b, "|"+launchProtocol+"|"...)
	b = appendEscaped(b, l.cert)
	return string(appendFields(b, l.fields))
}

// field returns the value of the first field with the key, or "".
func (l *launchLine) field(key string) string {
	for _, f := range l.fields {
		if f.key == key {
			return f.value
		}
	}
	return ""
}

// launchRefusal is what a plugin says that cannot serve.
type launchRefusal struct {
	code Code
	text string
}

func (r *launchRefusal) Error() string { return "plugwire: the plugin refuses: " + r.text }

// refusal returns why the plugin does not serve, or nil when it does.
func (l *launchLine) refusal() *launchRefusal {
	text := l.field(lineError)
	if text == "" {
		return nil
	}
	code, err := strconv.ParseUint(l.field(lineCode), 10, 16)
	if err != nil || code == 0 {
		code = uint64(Unknown)
	}
	return &launchRefusal{Code(code), plainText(text, maxLaunchLine)}
}

// parseLaunchLine reads one line of output, without its "\n". What stands before
// the launch line, such as a progress message without a line end, is passed over.
// The error is errNoLaunchLine for a line that is something else, and an *Error
// for a launch line that is of no use.
func parseLaunchLine(line string) (*launchLine, error) {
	l, _, err := findLaunchLine(line)
	return l, err
}

// findLaunchLine is parseLaunchLine that also says how many bytes stand before
// the launch line.
func findLaunchLine(line string) (l *launchLine, before int, err error) {
	line = strings.TrimSuffix(line, "\r")
	const mark = "|" + launchProtocol
	for at := 0; ; at += len(mark) {
		i := strings.Index(line[at:], mark)
		if i < 0 {
			return nil, 0, foreignLaunchLine(line)
		}
		at += i
		tail := line[at+len(mark):]
		if tail != "" && tail[0] != '|' {
			continue
		}
		l, before, err := parseLaunchHead(line[:at])
		if err == errNoLaunchLine {
			continue
		}
		if err == nil {
			err = l.parseTail(strings.TrimPrefix(tail, "|"))
		}
		if err != nil {
			return nil, 0, err
		}
		return l, before, nil
	}
}

// parseLaunchHead reads CORE|APP|NETWORK|ADDRESS from the end of s, and says how
// many bytes stand before.
func parseLaunchHead(s string) (l *launchLine, before int, err error) {
	var part [3]string // ADDRESS, NETWORK, APP
	for i := range part {
		at := strings.LastIndexByte(s, '|')
		if at < 0 {
			return nil, 0, errNoLaunchLine
		}
		s, part[i] = s[:at], s[at+1:]
	}
	if _, ok := parseNumber(s); !ok && s != "" {
		before = len(s) - 1
		s = s[before:] // the rest was printed before, without a line end
	}
	core, ok1 := parseNumber(s)
	app, ok2 := parseNumber(part[2])
	if !ok1 || !ok2 || !isScheme(part[1]) {
		return nil, 0, errNoLaunchLine
	}
	if core != launchCore {
		return nil, 0, &Error{Code: FailedPrecondition, Message: fmt.Sprintf(
			"the plugin's launch line has version %d, this host reads version %d", core, launchCore),
			Hint: "build both with the same plugwire"}
	}
	address, err := unescape(part[0])
	if err != nil {
		return nil, 0, badLaunchLine("ADDRESS", part[0])
	}
	return &launchLine{app: app, network: part[1], address: address}, before, nil
}

// parseTail reads CERT|key=value... and checks that the line says where to connect.
func (l *launchLine) parseTail(s string) error {
	cert, fields, _ := strings.Cut(s, "|")
	var err error
	if l.cert, err = unescape(cert); err != nil {
		return badLaunchLine("CERT", cert)
	}
	if l.fields, err = parseFields(fields); err != nil {
		return badLaunchLine("fields", fields)
	}
	if (l.network == "" || l.address == "") && l.field(lineError) == "" {
		return badLaunchLine("NETWORK|ADDRESS", l.network+"|"+l.address)
	}
	return nil
}

// badLaunchLine is the error for a launch line with a part that cannot be read.
func badLaunchLine(part, text string) *Error {
	return &Error{Code: InvalidArgument, Message: fmt.Sprintf(
		"the plugin's launch line has a malformed %s: %s", part, quoted(text, maxLaunchSeen))}
}

// foreignLaunchLine recognises the launch line of another protocol, go-plugin's
// foremost, whose plugins print no further line that would be worth waiting for.
func foreignLaunchLine(line string) error {
	part := strings.Split(strings.TrimSpace(line), "|")
	if len(part) < 4 || len(part) > 8 || part[2] != "unix" && part[2] != "tcp" || part[3] == "" {
		return errNoLaunchLine
	}
	_, ok1 := parseNumber(part[0])
	_, ok2 := parseNumber(part[1])
	if !ok1 || !ok2 {
		return errNoLaunchLine
	}
	protocol := "netrpc" // go-plugin's, where it prints none
	if len(part) > 4 {
		protocol = part[4]
	}
	switch {
	case protocol == "netrpc" || protocol == "grpc":
		return &Error{Code: FailedPrecondition, Hint: goPluginHint, Message: fmt.Sprintf(
			"it is a plugin of hashicorp/go-plugin: its launch line names the protocol %q, not %q", protocol, launchProtocol)}
	case protocol != "" && isScheme(protocol):
		return &Error{Code: FailedPrecondition, Message: fmt.Sprintf(
			"its launch line names the protocol %s, not %q", quoted(protocol, maxLaunchSeen), launchProtocol)}
	}
	return errNoLaunchLine
}

const goPluginHint = "plugwire launches programs that call plugwire.ServePlugin"

// launchScanner finds the launch line in what a plugin prints on stdout. The
// zero value is ready.
type launchScanner struct {
	line  []byte // the unfinished line, or the end of it
	seen  int    // bytes scanned
	first []byte // the beginning of what was printed
}

// scan takes the next bytes of the output. It returns the launch line, or an
// error when none is to be expected any more, or neither: then it wants more.
func (s *launchScanner) scan(p []byte) (*launchLine, error) {
	s.first = append(s.first, p[:min(len(p), maxLaunchSeen-len(s.first))]...)
	for len(p) > 0 {
		n := bytes.IndexByte(p, '\n') + 1
		whole := n > 0
		if !whole {
			n = len(p)
		}
		s.seen += n
		s.line = keepEnd(s.line, p[:n], maxLaunchLine)
		p = p[n:]
		if whole {
			if l, err := s.end(); l != nil || err != nil {
				return l, err
			}
		}
		if s.seen > maxLaunchScan {
			return nil, &Error{Code: ResourceExhausted, Hint: notPluginHint,
				Message: fmt.Sprintf("no launch line in so much output: %s", s.saw())}
		}
	}
	return nil, nil
}

// end takes the line so far as a whole one, as at the end of the output.
func (s *launchScanner) end() (*launchLine, error) {
	l, err := parseLaunchLine(strings.TrimSuffix(string(s.line), "\n"))
	s.line = s.line[:0]
	if err == errNoLaunchLine {
		return nil, nil
	}
	return l, err
}

// saw says what was printed instead of a launch line, safe to print.
func (s *launchScanner) saw() string {
	switch {
	case s.seen == 0:
		return "it printed nothing on stdout"
	case s.seen > len(s.first):
		return fmt.Sprintf("it printed %d bytes on stdout, beginning %s", s.seen, quoted(string(s.first), maxLaunchSeen))
	}
	return "it printed " + quoted(string(s.first), maxLaunchSeen) + " on stdout"
}

const notPluginHint = "is it a plugin? one calls plugwire.ServePlugin"

// appendFields appends each field as |key=value, the value escaped.
func appendFields(dst []byte, fields []launchField) []byte {
	for _, f := range fields {
		dst = append(dst, "|"+f.key+"="...)
		dst = appendEscaped(dst, f.value)
	}
	return dst
}

// parseFields reads key=value fields. What is not of that form is ignored, as a
// field that is not known is.
func parseFields(s string) ([]launchField, error) {
	var fields []launchField
	for text := range strings.SplitSeq(s, "|") {
		key, value, ok := strings.Cut(text, "=")
		if !ok || key == "" {
			continue
		}
		value, err := unescape(value)
		if err != nil {
			return nil, err
		}
		fields = append(fields, launchField{key, value})
	}
	return fields, nil
}

// appendEscaped appends s with every byte that would end a field or a line
// written as %XX.
func appendEscaped(dst []byte, s string) []byte {
	const hex = "0123456789ABCDEF"
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == 0x7f || c == '|' || c == '%' {
			dst = append(dst, '%', hex[c>>4], hex[c&15])
		} else {
			dst = append(dst, c)
		}
	}
	return dst
}

var errBadEscape = errors.New("plugwire: % without two hexadecimal digits")

// unescape reverses appendEscaped.
func unescape(s string) (string, error) {
	if strings.IndexByte(s, '%') < 0 {
		return s, nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b = append(b, s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", errBadEscape
		}
		c, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			return "", errBadEscape
		}
		b = append(b, byte(c))
		i += 2
	}
	return string(b), nil
}

// parseNumber reads decimal digits, and nothing else, as an int.
func parseNumber(s string) (int, bool) {
	if strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil
}

// isScheme reports whether s has only the characters of a transport's name; "" has.
func isScheme(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("+-._", c) >= 0) {
			return false
		}
	}
	return len(s) <= 64
}

// keepEnd appends p to dst and keeps the last n bytes of both.
func keepEnd(dst, p []byte, n int) []byte {
	if len(p) >= n {
		return append(dst[:0], p[len(p)-n:]...)
	}
	if over := len(dst) + len(p) - n; over > 0 {
		dst = dst[:copy(dst, dst[over:])]
	}
	return append(dst, p...)
}

// quoted returns s in quotes, at most n bytes of it, with everything that is
// not printable escaped.
func quoted(s string, n int) string {
	if len(s) <= n {
		return strconv.Quote(s)
	}
	return strconv.Quote(s[:n]) + "..."
}

// plainText returns at most n bytes of s with a space for each line end and tab,
// and '?' for everything else that is not printable.
func plainText(s string, n int) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r == utf8.RuneError || !strconv.IsPrint(r):
			return '?'
		}
		return r
	}, s[:min(n, len(s))])
}
