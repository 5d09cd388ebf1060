//go:build unix

// Package deploy checks the manifests of docs/DEPLOY.md: the fields of those for
// Kubernetes against k8s.io/api, the units by systemd-analyze where it is installed,
// and of all of them the command lines, which are run. It is a module of its own so
// that plugwire needs none of that.
package deploy

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// program is examples/service, built.
var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "deploy")
	if err == nil {
		err = os.Chmod(dir, 0o755) // others than this user run it
	}
	if err == nil {
		program = filepath.Join(dir, "service")
		build := exec.Command("go", "build", "-o", program, "./examples/service")
		build.Dir = filepath.Join("..", "..")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stderr = os.Stderr
		err = build.Run()
	}
	code := 1
	if err == nil {
		code = m.Run()
	} else {
		fmt.Fprintln(os.Stderr, err)
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// A certificate is what cert-manager.io/v1 has of the fields that are used here
// (https://cert-manager.io/docs/reference/api-docs/).
type certificate struct {
	meta.TypeMeta   `json:",inline"`
	meta.ObjectMeta `json:"metadata"`
	Spec            struct {
		SecretName  string        `json:"secretName"`
		Duration    meta.Duration `json:"duration"`
		RenewBefore meta.Duration `json:"renewBefore"`
		PrivateKey  struct {
			Algorithm      string `json:"algorithm"`
			Size           int    `json:"size"`
			RotationPolicy string `json:"rotationPolicy"`
		} `json:"privateKey"`
		Usages    []string `json:"usages"`
		DNSNames  []string `json:"dnsNames"`
		IssuerRef struct {
			Name string `json:"name"`
			Kind string `json:"kind"`
		} `json:"issuerRef"`
	} `json:"spec"`
}

// A manifest is the objects of a file.
type manifest struct {
	deployments  map[string]*apps.Deployment
	services     map[string]*core.Service
	configs      map[string]*core.ConfigMap
	certificates map[string]*certificate // by the name of the secret
}

func readManifest(t *testing.T, file string) *manifest {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m := &manifest{make(map[string]*apps.Deployment), make(map[string]*core.Service), make(map[string]*core.ConfigMap), make(map[string]*certificate)}
	for doc := range bytes.SplitSeq(b, []byte("\n---\n")) {
		var head meta.TypeMeta
		if err := yaml.Unmarshal(doc, &head); err != nil {
			t.Fatal(err)
		}
		var into any
		switch head.APIVersion + " " + head.Kind {
		case "apps/v1 Deployment":
			into = new(apps.Deployment)
		case "v1 Service":
			into = new(core.Service)
		case "v1 ConfigMap":
			into = new(core.ConfigMap)
		case "cert-manager.io/v1 Certificate":
			into = new(certificate)
		default:
			t.Fatalf("an object of %q", head)
		}
		b, err := yaml.YAMLToJSONStrict(doc) // double fields are errors
		if err != nil {
			t.Fatal(err)
		}
		strict, err := json.UnmarshalStrict(b, into) // and unknown ones, also by case, as for the API server
		if err := errors.Join(append(strict, err)...); err != nil {
			t.Fatal(err)
		}
		switch o := into.(type) {
		case *apps.Deployment:
			m.deployments[o.Name] = o
		case *core.Service:
			m.services[o.Name] = o
		case *core.ConfigMap:
			m.configs[o.Name] = o
		case *certificate:
			m.certificates[o.Spec.SecretName] = o
		}
	}
	return m
}

func containers(d *apps.Deployment) []core.Container {
	return slices.Concat(d.Spec.Template.Spec.InitContainers, d.Spec.Template.Spec.Containers)
}

// TestManifestsAreConsistent checks what strict decoding does not: that names refer
// to something.
func TestManifestsAreConsistent(t *testing.T) {
	files, _ := filepath.Glob("*.yaml")
	if len(files) != 3 {
		t.Fatalf("%q", files)
	}
	for _, file := range files {
		t.Run(file, func(t *testing.T) {
			m := readManifest(t, file)
			for _, d := range m.deployments {
				checkPod(t, m, d)
			}
			for _, s := range m.services {
				d := m.deployments[s.Name]
				if s.Spec.ClusterIP != core.ClusterIPNone || d == nil {
					t.Fatalf("service %s is not headless, or has no Pods", s.Name)
				}
				for k, v := range s.Spec.Selector {
					if d.Spec.Template.Labels[k] != v {
						t.Errorf("service %s selects %s=%s", s.Name, k, v)
					}
				}
			}
			for _, c := range m.certificates {
				if c.Spec.RenewBefore.Duration*2 > c.Spec.Duration.Duration || c.Spec.IssuerRef.Name == "" || len(c.Spec.DNSNames) == 0 {
					t.Errorf("certificate %s: %+v", c.Name, c.Spec)
				}
			}
		})
	}
}

func checkPod(t *testing.T, m *manifest, d *apps.Deployment) {
	for k, v := range d.Spec.Selector.MatchLabels {
		if d.Spec.Template.Labels[k] != v {
			t.Errorf("%s does not select its Pods by %s", d.Name, k)
		}
	}
	pod := d.Spec.Template.Spec
	volumes := make(map[string]bool)
	for _, v := range pod.Volumes {
		volumes[v.Name] = true
		if v.Secret != nil && m.certificates[v.Secret.SecretName] == nil {
			t.Errorf("%s: nobody makes the secret %s", d.Name, v.Secret.SecretName)
		}
		if v.ConfigMap != nil && m.configs[v.ConfigMap.Name] == nil {
			t.Errorf("%s: there is no ConfigMap %s", d.Name, v.ConfigMap.Name)
		}
	}
	for _, c := range containers(d) {
		var mounts []string
		for _, mount := range c.VolumeMounts {
			mounts = append(mounts, mount.MountPath)
			if !volumes[mount.Name] {
				t.Errorf("%s/%s mounts %s", d.Name, c.Name, mount.Name)
			}
		}
		for _, arg := range c.Args { // each file is in a volume
			path := strings.TrimPrefix(arg, "unix://")
			if strings.HasPrefix(path, "/") && !slices.ContainsFunc(mounts, func(m string) bool { return strings.HasPrefix(path, m+"/") }) {
				t.Errorf("%s/%s: %s is in no volume", d.Name, c.Name, path)
			}
		}
		for _, probe := range []*core.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
			if probe != nil && (probe.HTTPGet == nil || !slices.Contains(c.Args, ":"+portOf(probe.HTTPGet.Port)) || probe.HTTPGet.Path != "/healthz") {
				t.Errorf("%s/%s: nobody listens for the probe %+v", d.Name, c.Name, probe)
			}
		}
		if s := c.SecurityContext; s == nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation ||
			s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem || s.Capabilities == nil || len(s.Capabilities.Drop) == 0 {
			t.Errorf("%s/%s may do more than it must", d.Name, c.Name)
		}
	}
	if s := pod.SecurityContext; s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot {
		t.Errorf("%s may run as root", d.Name)
	}
}

func portOf(p intstr.IntOrString) string { return p.String() }

// argsOf returns the arguments of a container without -http, whose ports are of the
// Pod, and with the replacements (old, new ...) made.
func argsOf(t *testing.T, d *apps.Deployment, container string, replace ...string) (args []string, user int) {
	t.Helper()
	if d == nil {
		t.Fatal("no such Deployment")
	}
	i := slices.IndexFunc(containers(d), func(c core.Container) bool { return c.Name == container })
	if i < 0 {
		t.Fatalf("no container %s", container)
	}
	c := containers(d)[i]
	if c.SecurityContext.RunAsUser != nil {
		user = int(*c.SecurityContext.RunAsUser)
	}
	return ours(c.Args, replace...), user
}

func ours(args []string, replace ...string) []string {
	args = slices.Clone(args)
	if i := slices.Index(args, "-http"); i >= 0 {
		args = slices.Delete(args, i, i+2)
	}
	r := strings.NewReplacer(replace...)
	for i := range args {
		args[i] = r.Replace(args[i])
	}
	return args
}

// start runs a server until the test ends.
func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", cmd, err)
		}
		if t.Failed() {
			t.Logf("%s says:\n%s", cmd, said.String())
		}
	})
}

// calls runs a client that makes three calls, until they succeed.
func calls(t *testing.T, make func(ctx context.Context) *exec.Cmd) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		cmd := make(ctx)
		var said bytes.Buffer
		cmd.Stderr = &said
		out, err := cmd.Output()
		if err == nil && strings.Count(string(out), "hello, number ") == 3 {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%s: %v\n%s%s", cmd, err, out, said.String())
		}
		time.Sleep(20 * time.Millisecond) // until the server listens
	}
}

func callArgs(args []string) []string { return append(args, "-count", "3", "-every", "1ms") }

// as has a command run as a user, in the group.
func as(cmd *exec.Cmd, user, group int) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(user), Gid: uint32(user), Groups: []uint32{uint32(group)}}}
	return cmd
}

// TestSidecar runs the two containers of sidecar.yaml as their two users, over a
// directory as the kubelet makes it: root's, open to all, with the Pod's fsGroup.
func TestSidecar(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can run processes as two users")
	}
	d := readManifest(t, "sidecar.yaml").deployments["app-with-sidecar"]
	group := int(*d.Spec.Template.Spec.SecurityContext.FSGroup)
	dir, err := os.MkdirTemp("", "pod") // not below t.TempDir, which is closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := errors.Join(os.Chown(dir, 0, group), os.Chmod(dir, 0o777|os.ModeSetgid)); err != nil {
		t.Fatal(err)
	}
	serve, server := argsOf(t, d, "sidecar", "/run/app", dir)
	call, client := argsOf(t, d, "application", "/run/app", dir)
	if server == client || server == 0 || client == 0 {
		t.Fatalf("users %d and %d", server, client)
	}
	start(t, as(exec.Command(program, serve...), server, group))
	calls(t, func(ctx context.Context) *exec.Cmd {
		return as(exec.CommandContext(ctx, program, callArgs(call)...), client, group)
	})
	// A third user in the same group is not let in.
	cmd := as(exec.Command(program, append(callArgs(call), "-count", "1")...), client+1, group)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "PermissionDenied") && !strings.Contains(string(out), "refused uid") {
		t.Errorf("another user: %v\n%s", err, out)
	}
}

// TestHeadless runs servers and clients of the headless Services, with certificates
// as their issuers make them.
func TestHeadless(t *testing.T) {
	port := freePort(t)
	addr := []string{"tcp://0.0.0.0:7000", "tcp://127.0.0.1:" + port, "app.prod.svc.cluster.local:7000", "localhost:" + port}
	t.Run("cert-manager", func(t *testing.T) {
		m := readManifest(t, "headless-cert-manager.yaml")
		ca := newAuthority(t)
		paths := func(secret string) []string {
			dir := t.TempDir()
			ca.issue(t, dir, "tls.crt", "tls.key", "ca.crt", m.certificates[secret].Spec.DNSNames, "")
			return append([]string{"/tls/", dir + "/"}, addr...)
		}
		serve, _ := argsOf(t, m.deployments["app"], "app", paths("app-server-tls")...)
		call, _ := argsOf(t, m.deployments["app-client"], "client", paths("app-client-tls")...)
		start(t, exec.Command(program, serve...))
		calls(t, func(ctx context.Context) *exec.Cmd { return exec.CommandContext(ctx, program, callArgs(call)...) })
		// A client with the server's certificate has another name than the server wants.
		call, _ = argsOf(t, m.deployments["app-client"], "client", paths("app-server-tls")...)
		if out, err := exec.Command(program, callArgs(call)...).CombinedOutput(); err == nil {
			t.Errorf("a client with another name was let in:\n%s", out)
		}
	})
	t.Run("spiffe", func(t *testing.T) {
		d := readManifest(t, "headless-spiffe.yaml").deployments["app"]
		ca := newAuthority(t)
		paths := func(id string) []string {
			dir := t.TempDir()
			ca.issue(t, dir, "svid.pem", "svid_key.pem", "bundle.pem", nil, id)
			return append([]string{"/spiffe/svid/", dir + "/"}, addr...)
		}
		serve, _ := argsOf(t, d, "app", paths("spiffe://example.org/app")...)
		start(t, exec.Command(program, serve...))
		client := func(id string) []string { // the same with call in place of serve
			args, _ := argsOf(t, d, "app", append(paths(id), "serve", "call", "-listen", "-dns")...)
			i := slices.Index(args, "-grace")
			args = slices.Delete(args, i, i+2)
			return callArgs(ours(args, "tcp://127.0.0.1:", "localhost:"))
		}
		call := client("spiffe://example.org/client")
		calls(t, func(ctx context.Context) *exec.Cmd { return exec.CommandContext(ctx, program, call...) })
		if out, err := exec.Command(program, client("spiffe://example.com/client")...).CombinedOutput(); err == nil {
			t.Errorf("a client of another trust domain was let in:\n%s", out)
		}
	})
}

func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// An authority signs certificates.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{{Scheme: "spiffe", Host: "example.org"}}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{key, cert}
}

// issue writes the files of a certificate that has these names or that SPIFFE ID.
func (a *authority) issue(t *testing.T, dir, certFile, keyFile, caFile string, names []string, id string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: names, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		NotBefore:   time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}
	if id != "" {
		u, err := url.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = []*url.URL{u}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}, caFile: {Type: "CERTIFICATE", Bytes: a.cert.Raw},
	} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// readUnit returns a unit's settings, as "Section.Key".
func readUnit(t *testing.T, file string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	unit, section := make(map[string]string), ""
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		key, value, ok := strings.Cut(line, "=")
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]"):
			section = strings.Trim(line, "[]")
		case !ok || section == "" || unit[section+"."+key] != "":
			t.Errorf("%s: %q", file, line)
		default:
			unit[section+"."+key] = value
		}
	}
	return unit
}

// TestUnits has systemd look at the units, where it is installed.
func TestUnits(t *testing.T) {
	socket, service, alone := readUnit(t, "app.socket"), readUnit(t, "app.service"), readUnit(t, "app-alone.service")
	if name := socket["Socket.FileDescriptorName"]; service["Unit.Requires"] != "app.socket" || !strings.Contains(service["Service.ExecStart"], "-listen systemd:"+name+" ") {
		t.Errorf("the service does not take the socket %q: %s", name, service["Service.ExecStart"])
	}
	if dir := "/run/" + alone["Service.RuntimeDirectory"]; !strings.Contains(alone["Service.ExecStart"], "unix://"+dir+"/") {
		t.Errorf("%s is not made: %s", dir, alone["Service.ExecStart"])
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	dir := t.TempDir()
	args := []string{"verify", "--recursive-errors=no"}
	for _, file := range []string{"app.socket", "app.service", "app-alone.service"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		copied := filepath.Join(dir, file)
		b = bytes.ReplaceAll(b, []byte("/usr/local/bin/service"), []byte(program))
		if err := os.WriteFile(copied, b, 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, copied)
	}
	// It warns of what it does not know, and says nothing else.
	if out, err := exec.Command(analyze, args...).CombinedOutput(); err != nil || strings.Contains(string(out), dir) {
		t.Errorf("systemd-analyze: %v\n%s", err, out)
	}
}

// TestUnitsRun runs the command lines of the units, with a socket that systemd's
// own program passes, and without.
func TestUnitsRun(t *testing.T) {
	command := func(unit, path string) []string {
		line := strings.Fields(readUnit(t, unit)["Service.ExecStart"])
		return ours(append([]string{program}, line[1:]...), "/run/app/app.sock", path)
	}
	client := func(path string) func(ctx context.Context) *exec.Cmd {
		return func(ctx context.Context) *exec.Cmd {
			return exec.CommandContext(ctx, program, callArgs([]string{"call", "-dial", "unix://" + path, "-server-uids", "0"})...)
		}
	}
	t.Run("alone", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "app.sock")
		line := command("app-alone.service", path)
		start(t, exec.Command(line[0], line[1:]...))
		calls(t, client(path))
	})
	t.Run("activated", func(t *testing.T) {
		activate, err := exec.LookPath("systemd-socket-activate")
		if err != nil {
			t.Skip("systemd-socket-activate is not installed")
		}
		path := filepath.Join(t.TempDir(), "app.sock")
		name := readUnit(t, "app.socket")["Socket.FileDescriptorName"]
		start(t, exec.Command(activate, append([]string{"--listen=" + path, "--fdname=" + name}, command("app.service", path)...)...))
		calls(t, client(path))
	})
}
