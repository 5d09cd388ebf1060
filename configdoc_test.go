package plugwire

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var updateDocs = flag.Bool("update-docs", false, "write the tables in docs that tests make")

// configSource is what the source says of the exported fields below a struct:
// "TCP.Port" has its comment, by name.
type configSource map[string]string

// parseConfigSource reads the comments of Config's fields, and counts in which
// other files fields of their names are used.
func parseConfigSource(t *testing.T) (comments configSource, used map[string]int) {
	t.Helper()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	structs, used := make(map[string]*ast.StructType), make(map[string]int)
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.TypeSpec:
				if s, ok := n.Type.(*ast.StructType); ok {
					structs[n.Name.Name] = s
				}
			case *ast.SelectorExpr:
				if name != "configenv.go" { // which sets them
					used[n.Sel.Name]++
				}
			}
			return true
		})
	}
	comments = make(configSource)
	comments.add(structs, "", "Config")
	return comments, used
}

func (s configSource) add(structs map[string]*ast.StructType, prefix, name string) {
	said := "" // by the fields before, of one comment for several
	for _, field := range structs[name].Fields.List {
		text := strings.TrimSpace(field.Doc.Text() + field.Comment.Text())
		if text == "" {
			text = said
		}
		said = text
		for _, id := range field.Names {
			if id.IsExported() {
				s[prefix+id.Name] = text
			}
		}
		if id, ok := field.Type.(*ast.Ident); ok && structs[id.Name] != nil && field.Names[0].IsExported() {
			s.add(structs, prefix+field.Names[0].Name+".", id.Name)
		}
	}
}

// configFields calls f with each exported field of Config that is no group of others.
func configFields(t reflect.Type, prefix string, f func(name string, typ reflect.Type)) {
	for i := range t.NumField() {
		field := t.Field(i)
		switch {
		case !field.IsExported():
		case field.Type.Kind() == reflect.Struct && field.Type.PkgPath() == t.PkgPath():
			configFields(field.Type, prefix+field.Name+".", f)
		default:
			f(prefix+field.Name, field.Type)
		}
	}
}

// configTables returns what docs/CONFIG.md must have.
func configTables(comments configSource) string {
	var b strings.Builder
	b.WriteString("| field | type | variable | meaning |\n|---|---|---|---|\n")
	configFields(reflect.TypeFor[Config](), "", func(name string, typ reflect.Type) {
		var vars []string
		for _, v := range envVars() {
			if v.field == name || strings.HasSuffix(v.right, " sets "+name) {
				vars = append(vars, "`"+v.name+"`")
			}
		}
		kind := strings.NewReplacer("plugwire.", "", "interface {}", "any", "|", `\|`).Replace(typ.String())
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s |\n", name, kind, strings.Join(vars, ", "), inTable(comments[name]))
	})
	b.WriteString("\n| variable | field | right values |\n|---|---|---|\n")
	for _, v := range envVars() {
		fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", v.name, v.field, inTable(v.right))
	}
	return b.String()
}

func inTable(s string) string {
	return strings.Join(strings.Fields(strings.ReplaceAll(s, "|", `\|`)), " ")
}

// docs/CONFIG.md has every field and every variable, and what the source says of
// them; and there is none that nothing reads.
func TestConfigDocIsWhatTheSourceSays(t *testing.T) {
	comments, used := parseConfigSource(t)
	configFields(reflect.TypeFor[Config](), "", func(name string, _ reflect.Type) {
		last := name[strings.LastIndexByte(name, '.')+1:]
		if comments[name] == "" {
			t.Errorf("Config.%s has no comment", name)
		}
		if used[last] == 0 && name != "EnvWarnings" { // which is for the program
			t.Errorf("nothing reads Config.%s", name)
		}
	})
	fields := make(map[string]bool)
	configFields(reflect.TypeFor[Config](), "", func(name string, _ reflect.Type) { fields[name] = true })
	for _, v := range envVars() {
		if !fields[v.field] {
			t.Errorf("%s sets Config.%s, which is not there", v.name, v.field)
		}
	}
	checkGenerated(t, "docs/CONFIG.md", configTables(comments))
}

// checkGenerated compares what stands in a file between the two marks with text,
// or with -update-docs writes it there.
func checkGenerated(t *testing.T, name, text string) {
	t.Helper()
	const begin, end = "<!-- made by a test: go test -run Doc -update-docs . -->\n", "<!-- end -->\n"
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(b), begin)
	old, after, ok2 := strings.Cut(rest, end)
	switch {
	case !ok1 || !ok2:
		t.Errorf("%s lacks the marks %q and %q", name, begin, end)
	case *updateDocs:
		if err := os.WriteFile(name, []byte(before+begin+text+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	case old != text:
		t.Errorf("%s is not what the source says; after looking at the difference: go test -run Doc -update-docs .", name)
	}
}
