package plugwire

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	testFunc   = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Example)\w*)\(`)
	namedTest  = regexp.MustCompile(`\b(?:Test|Fuzz|Example)[A-Z]\w*`)
	threatTest = regexp.MustCompile(`^TestT\d\d`)
)

// docs/SECURITY.md is only worth something while the tests that it names are
// there, and name all that there are for a threat.
func TestSecurityDocNamesTheTests(t *testing.T) {
	doc, err := os.ReadFile("docs/SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	named, have := make(map[string]bool), make(map[string]bool)
	for _, name := range namedTest.FindAllString(string(doc), -1) {
		named[name] = true
	}
	err = filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range testFunc.FindAllSubmatch(b, -1) {
			have[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range named {
		if !have[name] {
			t.Errorf("docs/SECURITY.md names %s, which is nowhere", name)
		}
	}
	for name := range have {
		if threatTest.MatchString(name) && !named[name] {
			t.Errorf("docs/SECURITY.md does not name %s", name)
		}
	}
}
