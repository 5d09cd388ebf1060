package plugwire

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

// scanAll feeds output to a scanner in pieces of n bytes, to its end.
func scanAll(s *launchScanner, output string, n int) (*launchLine, error) {
	for len(output) > 0 {
		piece := output[:min(n, len(output))]
		output = output[len(piece):]
		if l, err := s.scan([]byte(piece)); l != nil || err != nil {
			return l, err
		}
	}
	return s.end()
}

func TestLaunchLineIsFoundBehindOtherOutput(t *testing.T) {
	want := &launchLine{app: 2, network: "unix", address: "/tmp/p/plugin.sock"}
	const line = "1|2|unix|/tmp/p/plugin.sock|plugwire|"
	for _, output := range []string{
		line + "\n",
		line + "\r\n",
		line, // the output ended
		"1|2|unix|/tmp/p/plugin.sock|plugwire\n",
		line + "|future=1|x||=|plain\n",
		"warming up\n\n\n" + line + "\n",
		"a|b|c|d|e|f\n" + line + "\n",
		"no line end behind this: 50%" + line + "\n",
		"|plugwire|" + line + "\n",
		"x|plugwire|y|plugwired|" + line + "\n",
		"1|2|tcp|\n1|2|/|/x|plugwire|\n" + "\x00\xff\x1b[31m" + line + "\n",
		strings.Repeat("x", 2*maxLaunchLine) + "\n" + line + "\n",
		strings.Repeat("x", 2*maxLaunchLine) + line + "\n",
		strings.Repeat("noise\n", 1000) + line + "\nand more\n",
	} {
		for _, n := range []int{1, 7, len(output)} {
			got, err := scanAll(new(launchScanner), output, n)
			if err != nil || got == nil {
				t.Fatalf("in pieces of %d of %.80q: %v, %v", n, output, got, err)
			}
			got.fields = nil
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("in pieces of %d of %.80q: %+v", n, output, got)
			}
		}
	}
}

func TestLaunchLineRefusesWhatIsOfNoUse(t *testing.T) {
	for _, test := range []struct {
		output string
		code   Code
		says   string
	}{
		{"1|3|unix|/tmp/s|grpc\n", FailedPrecondition, `hashicorp/go-plugin: its launch line names the protocol "grpc"`},
		{"log\n1|3|unix|/tmp/s|grpc||true\n", FailedPrecondition, `"grpc"`},
		{"1|3|tcp|127.0.0.1:1234|netrpc|\n", FailedPrecondition, `"netrpc"`},
		{" 1|3|tcp|127.0.0.1:1234 \n", FailedPrecondition, `"netrpc"`},
		{"1|3|tcp|127.0.0.1:1234|ttrpc|\n", FailedPrecondition, `names the protocol "ttrpc", not "plugwire"`},
		{"2|0|unix|/tmp/s|plugwire|\n", FailedPrecondition, "has version 2, this host reads version 1"},
		{"1|0|unix|/tmp/%zz|plugwire|\n", InvalidArgument, `malformed ADDRESS: "/tmp/%zz"`},
		{"1|0|unix|/tmp/%|plugwire|\n", InvalidArgument, "malformed ADDRESS"},
		{"1|0|unix|/tmp/s|plugwire|%4\n", InvalidArgument, "malformed CERT"},
		{"1|0|unix|/tmp/s|plugwire||k=%4\n", InvalidArgument, "malformed fields"},
		{"1|0|||plugwire|\n", InvalidArgument, "malformed NETWORK|ADDRESS"},
		{"1|0|unix||plugwire|\n", InvalidArgument, "malformed NETWORK|ADDRESS"},
		{strings.Repeat("noise\n", maxLaunchScan), ResourceExhausted, `beginning "noise\nnoise\n`},
		{strings.Repeat("x", 2*maxLaunchScan), ResourceExhausted, `beginning "xxx`},
	} {
		l, err := scanAll(new(launchScanner), test.output, 32<<10)
		if l != nil || CodeOf(err) != test.code || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%.60q: %v, %v: want %v and %q", test.output, l, err, test.code, test.says)
		}
		if err != nil && len(err.Error()) > 2000 {
			t.Errorf("%.60q: an error of %d bytes", test.output, len(err.Error()))
		}
	}
}

func TestLaunchLineRefusalCarriesTheError(t *testing.T) {
	sent := &Error{Code: FailedPrecondition, Op: "launch", Message: "no\nway | out: 100%", Hint: "turn back"}
	l, err := parseLaunchLine(refusalLine(sent).String())
	if err != nil {
		t.Fatal(err)
	}
	got := l.refusal()
	if got == nil || got.code != FailedPrecondition || got.text != "no way | out: 100% (turn back)" {
		t.Fatalf("%+v", got)
	}
	if l := (&launchLine{network: "unix", address: "/s"}); l.refusal() != nil {
		t.Fatal("a refusal without an error")
	}
}

func TestLaunchScannerSaysWhatItSaw(t *testing.T) {
	for output, want := range map[string]string{
		"":                          "it printed nothing on stdout",
		"usage: greeter\n\x1b[2J":   `it printed "usage: greeter\n\x1b[2J" on stdout`,
		strings.Repeat("long ", 99): `it printed 495 bytes on stdout, beginning "long long `,
	} {
		var s launchScanner
		if l, err := scanAll(&s, output, 10); l != nil || err != nil {
			t.Fatal(l, err)
		}
		if got := s.saw(); !strings.HasPrefix(got, want) || len(got) > 4*maxLaunchSeen {
			t.Errorf("%.40q: %s", output, got)
		}
	}
}

// randomText makes strings in which the characters that matter are frequent.
func randomText(r *rand.Rand) string {
	b := make([]byte, r.IntN(20))
	for i := range b {
		const special = "|%=\n\r, \x00\x7f\xff1"
		if b[i] = byte(r.IntN(256)); r.IntN(2) == 0 {
			b[i] = special[r.IntN(len(special))]
		}
	}
	return string(b)
}

func TestLaunchLineRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		want := &launchLine{app: r.IntN(1 << 30), network: []string{"unix", "tcp", "x-y"}[r.IntN(3)],
			address: "/" + randomText(r), cert: randomText(r)}
		for i := range r.IntN(4) {
			want.fields = append(want.fields, launchField{fmt.Sprint("k", i), randomText(r)})
		}
		line := want.String()
		if strings.ContainsAny(line, "\n\r\x00") {
			t.Fatalf("%q has a control character", line)
		}
		got, err := scanAll(new(launchScanner), "noise: "+line+"\n", 1+r.IntN(50))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%q: got %+v, %v, want %+v", line, got, err, want)
		}
	}
}

func TestLaunchOrderRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 5000 {
		want := &launchOrder{cookie: randomText(r), dir: randomText(r), stdin: r.IntN(2) == 0}
		for range r.IntN(3) {
			want.transports = append(want.transports, []string{"unix", "tcp"}[r.IntN(2)])
			want.versions = append(want.versions, r.IntN(1<<30))
		}
		text := want.String()
		if strings.ContainsAny(text, "\x00\n") {
			t.Fatalf("%q cannot stand in the environment", text)
		}
		got, err := parseLaunchOrder(text + "|of=the future|nonsense")
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%q: got %+v, %v, want %+v", text, got, err, want)
		}
	}
}

func TestLaunchOrderThatIsMalformed(t *testing.T) {
	for text, says := range map[string]string{
		"2|cookie=x":             `version "2", this plugin reads version 1`,
		"cookie=x":               `version "cookie=x"`,
		"1|cookie=%":             "malformed field",
		"1|cookie=x|versions=1,": "malformed list of versions",
	} {
		if _, err := parseLaunchOrder(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
}

func TestKeepEnd(t *testing.T) {
	var all, kept []byte
	for i := range 200 {
		p := bytes.Repeat([]byte{byte(i)}, i%13)
		all, kept = append(all, p...), keepEnd(kept, p, 10)
		if want := all[max(0, len(all)-10):]; !bytes.Equal(kept, want) {
			t.Fatalf("after %d: %v, want %v", i, kept, want)
		}
	}
}

// FuzzLaunchLine scans any output: whole and in pieces must find the same, a line
// that was found must survive being printed again, and no error may be long.
func FuzzLaunchLine(f *testing.F) {
	f.Add([]byte("1|0|unix|/tmp/plugwire-1/plugin.sock|plugwire|\n"), uint8(3))
	f.Fuzz(func(t *testing.T, output []byte, piece uint8) {
		whole, err := scanAll(new(launchScanner), string(output), len(output)+1)
		pieces, err2 := scanAll(new(launchScanner), string(output), int(piece)+1)
		if !reflect.DeepEqual(whole, pieces) || (err == nil) != (err2 == nil) {
			t.Fatalf("whole: %+v, %v; in pieces: %+v, %v", whole, err, pieces, err2)
		}
		if err != nil && (len(err.Error()) > 2000 || !errors.As(err, new(*Error))) {
			t.Fatalf("a bad error: %v", err)
		}
		if whole == nil {
			return
		}
		whole.refusal()
		again, err := parseLaunchLine(whole.String())
		if err != nil || !reflect.DeepEqual(again, whole) {
			t.Fatalf("%+v printed and read again: %+v, %v", whole, again, err)
		}
	})
}
