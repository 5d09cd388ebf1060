// Package embedding has the tests of what becomes of this module in another one:
// what it brings along, and that it can be got, vendored and built offline.
package embedding

import (
	"archive/zip"
	"go/ast"
	"go/build"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

const (
	module = "github.com/plugwire/plugwire"
	root   = "../.." // its directory
)

// goCommand runs the go command in dir, with env added, and returns what it printed.
func goCommand(t *testing.T, dir string, env []string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no go command:", err)
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v\n%s%s", strings.Join(args, " "), err, out, &stderr)
	}
	return string(out)
}

// What the package imports ends up in the build of everyone who embeds it.
func TestImports(t *testing.T) {
	for tags, banned := range map[string][]string{
		"":               {"net/http", "expvar", "encoding/gob", "testing", "C"},
		"plugwire_notls": {"net/http", "expvar", "encoding/gob", "testing", "C", "crypto/tls", "crypto/x509"},
	} {
		deps := strings.Fields(goCommand(t, root, []string{"CGO_ENABLED=0"}, "list", "-deps", "-tags", tags, "."))
		if !slices.Contains(deps, "net") {
			t.Fatalf("go list -deps printed %q", deps)
		}
		for _, dep := range deps {
			first, _, _ := strings.Cut(dep, "/")
			own := strings.HasPrefix(dep, module) || strings.HasPrefix(dep, "golang.org/x/sys/")
			if slices.Contains(banned, dep) || strings.Contains(first, ".") && !own {
				t.Errorf("with the tags %q it imports %s", tags, dep)
			}
		}
	}
	if modules := strings.Fields(goCommand(t, root, nil, "list", "-m", "-f", "{{.Path}}", "all")); !slices.Equal(modules, []string{module, "golang.org/x/sys"}) {
		t.Errorf("the modules of its build are %q", modules)
	}
}

// exported returns the exported declarations of the package when it is built
// with tags: methods as "T.M", fields as "T:F", each with its source.
func exported(t *testing.T, tags ...string) map[string]string {
	ctx := build.Default
	ctx.BuildTags = tags
	pkg, err := ctx.ImportDir(root, 0)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]string{}
	fset := token.NewFileSet()
	add := func(name string, node any) {
		var b strings.Builder
		if err := format.Node(&b, fset, node); err != nil {
			t.Fatal(err)
		}
		names[name] = b.String()
	}
	for _, file := range pkg.GoFiles {
		f, err := parser.ParseFile(fset, filepath.Join(root, file), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range f.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				name := d.Name.Name
				if d.Recv != nil {
					name = receiver(d.Recv.List[0].Type) + "." + name
				}
				if d.Name.IsExported() && ast.IsExported(name) {
					add(name, d.Type)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					addSpec(spec, add)
				}
			}
		}
	}
	return names
}

func addSpec(spec ast.Spec, add func(name string, node any)) {
	switch s := spec.(type) {
	case *ast.ValueSpec:
		for _, name := range s.Names {
			if name.IsExported() {
				add(name.Name, s)
			}
		}
	case *ast.TypeSpec:
		if !s.Name.IsExported() {
			return
		}
		structure, ok := s.Type.(*ast.StructType)
		if !ok {
			add(s.Name.Name, s)
			return
		}
		add(s.Name.Name, s.Name)
		for _, field := range structure.Fields.List {
			for _, name := range field.Names {
				if name.IsExported() {
					add(s.Name.Name+":"+name.Name, field.Type)
				}
			}
		}
	}
}

// receiver returns the name of a method's type.
func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// The tag takes away the functions that name crypto/tls or crypto/x509, and
// changes nothing else.
func TestSurfaceWithoutTLS(t *testing.T) {
	with, without := exported(t), exported(t, "plugwire_notls")
	namesTLS := regexp.MustCompile(`\b(tls|x509)\.`)
	gone := 0
	for name, source := range with {
		other, ok := without[name]
		isFunc := strings.HasPrefix(source, "func(")
		switch {
		case ok && other != source:
			t.Errorf("%s is %q, and with the tag %q", name, source, other)
		case ok && namesTLS.MatchString(source):
			t.Errorf("%s is there with the tag: %s", name, source)
		case !ok && (!isFunc || !namesTLS.MatchString(source)):
			t.Errorf("%s is gone with the tag, but does not name crypto/tls or crypto/x509: %s", name, source)
		case !ok:
			gone++
		}
	}
	for name := range without {
		if _, ok := with[name]; !ok {
			t.Errorf("%s is there with the tag alone", name)
		}
	}
	if gone == 0 || len(without) < 100 {
		t.Errorf("%d names, of which %d are gone with the tag", len(with), gone)
	}
}

// newModule makes a module with the two programs of the README: the host in its
// directory, the plugin in "plugin".
func newModule(t *testing.T) (dir string) {
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	for name, file := range map[string]string{"plugin": "plugin/main.go", "host": "main.go"} {
		_, program, ok := strings.Cut(string(readme), "```go\n// "+name+"\npackage main\n")
		program, _, ok2 := strings.Cut(program, "```\n")
		if !ok || !ok2 {
			t.Fatalf("README.md has no program that begins with // %s", name)
		}
		write(t, filepath.Join(dir, file), "package main\n"+program)
	}
	write(t, filepath.Join(dir, "go.mod"), "module example.com/app\n\ngo 1.25.0\n")
	return dir
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// quickStart builds the two programs and runs the host.
func quickStart(t *testing.T, dir string, env []string, flags ...string) {
	t.Helper()
	exe := ""
	if runtime.GOOS == "windows" {
		exe = ".exe"
	}
	env = append(env, "CGO_ENABLED=0")
	goCommand(t, dir, env, append(append([]string{"build"}, flags...), "-o", "greeter"+exe, "./plugin")...)
	goCommand(t, dir, env, append(append([]string{"build"}, flags...), "-o", "app"+exe, ".")...)
	host := exec.Command(filepath.Join(dir, "app"+exe))
	host.Dir = dir
	if out, err := host.CombinedOutput(); err != nil || string(out) != "hello, world <nil>\n" {
		t.Errorf("the host printed %q, %v", out, err)
	}
}

// A program that embeds the module can be vendored, and built without network and cgo.
func TestVendoredBuild(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds programs")
	}
	t.Parallel()
	dir := newModule(t)
	abs, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	sums, err := os.ReadFile(filepath.Join(root, "go.sum")) // or they would be asked for
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "go.sum"), string(sums))
	offline := []string{"GOPROXY=off", "GOFLAGS=-mod=mod", "GOWORK=off"}
	goCommand(t, dir, offline, "mod", "edit", "-replace", module+"="+abs, "-require", module+"@v0.0.0")
	goCommand(t, dir, offline, "mod", "tidy")
	goCommand(t, dir, offline, "mod", "vendor")
	if _, err := os.Stat(filepath.Join(dir, "vendor/golang.org/x/sys")); err != nil {
		t.Error(err)
	}
	for _, tags := range []string{"", "plugwire_notls"} {
		quickStart(t, dir, []string{"GOPROXY=off", "GOFLAGS=-mod=vendor", "GOWORK=off"}, "-tags", tags)
	}
}

// The module as a proxy serves it, without what is here beside, is all that a new
// module needs.
func TestGoGetAtAVersion(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds programs")
	}
	t.Parallel()
	const version = "v0.99.0"
	proxy := t.TempDir()
	at := filepath.Join(proxy, module, "@v")
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(at, "list"), version+"\n")
	write(t, filepath.Join(at, version+".info"), `{"Version":"`+version+`"}`)
	write(t, filepath.Join(at, version+".mod"), string(mod))
	writeZip(t, filepath.Join(at, version+".zip"), module+"@"+version+"/")
	cache := strings.TrimSpace(goCommand(t, root, nil, "env", "GOMODCACHE"))
	env := []string{"GOPROXY=" + fileURL(proxy) + "," + fileURL(filepath.Join(cache, "cache", "download")),
		"GOMODCACHE=" + t.TempDir(), "GOFLAGS=-modcacherw", "GOSUMDB=off", "GOWORK=off"}
	dir := newModule(t)
	goCommand(t, dir, env, "get", module+"@"+version)
	text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil || !strings.Contains(string(text), module+" "+version) || strings.Contains(string(text), "replace") {
		t.Fatalf("go.mod: %s, %v", text, err)
	}
	quickStart(t, dir, env)
}

// fileURL returns the URL of an absolute path.
func fileURL(path string) string { return "file:///" + strings.TrimPrefix(filepath.ToSlash(path), "/") }

// writeZip packs the module: all files but those of modules within it.
func writeZip(t *testing.T, file, prefix string) {
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z := zip.NewWriter(f)
	err = fs.WalkDir(os.DirFS(root), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		if d.IsDir() {
			if _, err := os.Stat(filepath.Join(root, path, "go.mod")); err == nil || d.Name() == ".git" {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || d.Name() == ".git" {
			return nil
		}
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			return err
		}
		w, err := z.Create(prefix + path)
		if err == nil {
			_, err = w.Write(text)
		}
		return err
	})
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}
