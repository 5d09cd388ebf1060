//go:build unix && !plugwire_notls

package plugwire

import (
	"testing"
)

func init() {
	for _, v := range []string{"SERVER_CERT", "SERVER_KEY", "CLIENT_CERT", "CLIENT_KEY", "CLIENT_ROOT_CERTS", "SERVER_ROOT_CERTS"} {
		envEffects[v] = func(t *testing.T) { certificateEffect(t, v) }
	}
}

// certificateEffect has both sides use certificates of the environment, as PEM and
// as files, and nobody connect when the variable has those of another authority.
func certificateEffect(t *testing.T, variable string) {
	good, bad := certVariables(t), certVariables(t)
	for form := range 2 {
		for _, replaced := range []bool{false, true} {
			var pairs []string
			for name, values := range good {
				if replaced && (name == variable || isPairOf(name, variable)) {
					values = bad[name]
				}
				pairs = append(pairs, name, values[form])
			}
			l := serveMux(t, "tcp:", fromEnv(t, pairs...))
			c, err := Dial(t.Context(), addrURI(l.Addr()), fromEnv(t, pairs...))
			if err == nil && (!c.Peer().Verified || c.Peer().Certificate() == nil) {
				t.Error("no certificate was verified")
			}
			if err == nil { // the dialler learns with its first call that the server refuses it
				_, err = c.Call(t.Context(), "echo", nil)
				c.Close()
			}
			if (err != nil) != replaced {
				t.Errorf("form %d, replaced %v: %v", form, replaced, err)
			}
		}
	}
}

// isPairOf says that only both variables together can have another pair.
func isPairOf(a, b string) bool {
	return a[:6] == b[:6] && len(a) <= len("CLIENT_CERT") && len(b) <= len("CLIENT_CERT")
}

// certVariables returns what the variables have with an authority of its own, as
// PEM and as a file.
func certVariables(t *testing.T) map[string][2]string {
	ca := newTestCA(t)
	vars := make(map[string][2]string)
	for side, other := range map[string]string{"SERVER": "CLIENT", "CLIENT": "SERVER"} {
		f := newCertFiles(t.TempDir())
		cert := ca.issue(t, nil)
		f.write(t, cert, ca)
		vars[side+"_CERT"] = [2]string{string(certPEM(cert.Leaf)), "file://" + f.cert}
		vars[side+"_KEY"] = [2]string{string(keyPEM(t, cert)), "file://" + f.key}
		vars[other+"_ROOT_CERTS"] = [2]string{string(certPEM(ca.cert)), "file://" + f.ca}
	}
	return vars
}

// A key that does not belong to the certificate is found at once, and not shown.
func TestVariablesOfAnotherPair(t *testing.T) {
	a, b := certVariables(t), certVariables(t)
	_, err := ConfigFromEnv(setEnv(t, "SERVER_CERT", a["SERVER_CERT"][0], "SERVER_KEY", b["SERVER_KEY"][0]))
	if CodeOf(err) != InvalidArgument {
		t.Fatal(err)
	}
}
