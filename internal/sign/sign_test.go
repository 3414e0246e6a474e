// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sign_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/internal/sign/signtest"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/tlog"
	"github.com/hallmark-sc/hallmark/verify"
)

const (
	domain = "a.hallmark.test"
	origin = "log." + domain
)

// clock is a time that a test sets.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// lab is a keyring, a log in memory and a signer over both.
type lab struct {
	t        *testing.T
	dir      string
	clock    *clock
	keys     *sign.Keyring
	log      *signtest.Memory
	existing func(context.Context, hallmark.Digest) ([]byte, bool, error)
	verifier *verify.Verifier
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir(), clock: &clock{at: time.Now().Add(-time.Hour)}}
	var err error
	if l.keys, err = sign.Create(l.config(nil)); err != nil {
		t.Fatal(err)
	}
	s, err := l.keys.CheckpointSigner(origin)
	if err != nil {
		t.Fatal(err)
	}
	key := l.keys.Checkpoint().Key.(ed25519.PublicKey)
	if l.log, err = signtest.NewMemory(origin, s, key); err != nil {
		t.Fatal(err)
	}
	id, err := tlog.LogID(origin, key)
	if err != nil {
		t.Fatal(err)
	}
	trusted, err := l.keys.TrustedRoot(origin, id)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := l.keys.TrustedRoot(origin, id); err != nil || string(again) != string(trusted) || strings.Contains(string(trusted), `": `) {
		t.Errorf("the trusted root is not the same bytes each time: %v", err)
	}
	key1 := func(p sign.Public) verify.Key { return verify.Key{Hint: p.Hint, PublicKey: p.PEM} }
	artifact, policy := key1(l.keys.Artifact()), key1(l.keys.Policy())
	all := []string{intoto.PredicateSource, intoto.PredicateTestResult, intoto.PredicateVulns, intoto.PredicateSCAI, intoto.PredicateLink, intoto.PredicateSPDX, intoto.PredicateCycloneDX}
	roots := verify.Roots{APIVersion: "hallmark/v1", Kind: "Roots", TrustDomain: domain, Mode: verify.ModeSingleOperator, Administrators: []string{"ada"},
		Policy: verify.PolicyRoots{Keys: []verify.Key{policy}, Threshold: 1, MinimumVersion: 1},
		Signers: []verify.Signer{
			{Name: "observer", Certificate: &verify.Certificate{Issuer: "https://" + domain, SAN: "spiffe://" + domain + "/observer"}, PredicateTypes: all},
			{Name: "builder", Certificate: &verify.Certificate{Issuer: "https://" + domain, SAN: "spiffe://" + domain + "/builder/local"}, PredicateTypes: []string{intoto.PredicateProvenance}, BuilderIDs: []string{intoto.BuilderLocal}, MaxLevel: "SLSA_BUILD_LEVEL_1"},
			{Name: "wrapper", Certificate: &verify.Certificate{Issuer: "https://" + domain, SAN: "spiffe://" + domain + "/builder/wrap"}, PredicateTypes: []string{intoto.PredicateProvenance}, BuilderIDs: []string{intoto.BuilderLocal, intoto.BuilderWrap}, MaxLevel: "SLSA_BUILD_LEVEL_1"},
			{Name: "release", Key: &artifact, PredicateTypes: []string{intoto.PredicateVSA}, VerifierIDs: []string{"https://v.test"}},
			{Name: "policy", Key: &policy, PredicateTypes: []string{intoto.PredicatePolicy, intoto.PredicateGenesis}},
		},
		Logs: []verify.Log{{Origin: origin, PublicKey: l.keys.Checkpoint().PEM}}, TrustedRoot: hallmark.DigestOf(trusted)}
	b, err := roots.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if l.verifier, err = verify.New(verify.Config{Roots: b, Pin: hallmark.DigestOf(b), TrustedRoot: trusted}); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *lab) config(pass []byte) sign.Config {
	return sign.Config{Dir: l.dir, Passphrase: pass, TrustDomain: domain, Clock: l.clock.now}
}

func (l *lab) signer() *sign.Signer {
	l.t.Helper()
	s, err := sign.NewSigner(sign.SignerConfig{Keyring: l.keys, Log: l.log, TrustDomain: domain, Clock: l.clock.now, Existing: l.existing})
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

// predicates is a predicate of each type that verify accepts.
var predicates = map[string]any{
	intoto.PredicateSource: map[string]any{}, intoto.PredicateTestResult: map[string]any{}, intoto.PredicateVulns: map[string]any{},
	intoto.PredicateSCAI: map[string]any{}, intoto.PredicateLink: map[string]any{}, intoto.PredicateSPDX: map[string]any{}, intoto.PredicateCycloneDX: map[string]any{},
	intoto.PredicateProvenance: intoto.Provenance{
		BuildDefinition: intoto.BuildDefinition{BuildType: intoto.BuildTypePipeline, ExternalParameters: intoto.ExternalParameters{Repository: "file:///r", Revision: strings.Repeat("a", 40)}},
		RunDetails:      intoto.RunDetails{Builder: intoto.Builder{ID: intoto.BuilderLocal}}},
	intoto.PredicateVSA:    intoto.VSA{Verifier: intoto.VSAVerifier{ID: "https://v.test"}},
	intoto.PredicatePolicy: map[string]any{"version": 1, "previous": ""}, intoto.PredicateGenesis: map[string]any{},
}

func statement(t *testing.T, predicateType, subject string) []byte {
	t.Helper()
	p, ok := predicates[predicateType]
	if !ok {
		p = map[string]any{}
	}
	b, err := json.Marshal(map[string]any{"_type": intoto.StatementType, "predicateType": predicateType, "predicate": p,
		"subject": []any{map[string]any{"name": subject, "digest": map[string]string{"sha256": hallmark.DigestOf([]byte(subject)).Hex()}}}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func permit(statement []byte) *sign.Permit {
	return &sign.Permit{Statement: hallmark.DigestOf(intoto.PAE(intoto.PayloadType, statement)), BuildPolicy: hallmark.DigestOf([]byte("policy")),
		Decision: hallmark.Decision{Effect: hallmark.Allow}}
}

// TestWhoMaySignWhat tries every identity with every predicate type. What is
// signed verifies under pinned roots; what is refused leaves no entry.
func TestWhoMaySignWhat(t *testing.T) {
	l := newLab(t)
	s := l.signer()
	may := map[sign.Identity]map[string]bool{
		sign.Observer: {intoto.PredicateSource: true, intoto.PredicateTestResult: true, intoto.PredicateVulns: true, intoto.PredicateSCAI: true, intoto.PredicateLink: true, intoto.PredicateSPDX: true, intoto.PredicateCycloneDX: true},
		sign.Builder:  {intoto.PredicateProvenance: true}, sign.Release: {intoto.PredicateVSA: true},
		sign.Policy:  {intoto.PredicatePolicy: true, intoto.PredicateGenesis: true},
		sign.Wrapper: {intoto.PredicateProvenance: true},
		0:            {}, 6: {}, -1: {},
	}
	names := map[sign.Identity]string{sign.Observer: "observer", sign.Builder: "builder", sign.Release: "release", sign.Policy: "policy", sign.Wrapper: "wrapper"}
	types := []string{"https://example.org/unknown"}
	for p := range predicates {
		types = append(types, p)
	}
	for id, list := range may {
		for _, p := range types {
			st := statement(t, p, "x")
			before := l.log.Size()
			b, err := s.Sign(t.Context(), sign.Request{Identity: id, Statement: st, Permit: permit(st)})
			if !list[p] {
				if hallmark.CodeOf(err) != hallmark.CodeSignerNotAuthorized || hallmark.KindOf(err) != hallmark.KindDenied || l.log.Size() != before || b.JSON != nil {
					t.Errorf("identity %d signed %s: %v", id, p, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("identity %d, %s: %v", id, p, err)
				continue
			}
			v, err := l.verifier.Verify(b.JSON)
			if err != nil {
				t.Errorf("identity %d, %s: the bundle does not verify: %v", id, p, err)
				continue
			}
			if v.Signer() != names[id] || v.Digest() != b.Statement || v.BundleDigest() != b.Digest || int64(v.LogIndex()) != b.LogIndex || !v.SignedAt().Equal(b.SignedAt) || string(v.Payload()) != string(st) {
				t.Errorf("identity %d, %s: verified %s %s at %d, %s; want %+v", id, p, v.Signer(), v.Digest(), v.LogIndex(), v.SignedAt(), b)
			}
		}
	}
	for name, st := range map[string][]byte{"nothing": nil, "no statement": []byte("{}"), "doubled key": []byte(strings.Replace(string(statement(t, intoto.PredicateVSA, "x")), `{"_type"`, `{"predicateType":"x","_type"`, 1))} {
		if _, err := s.Sign(t.Context(), sign.Request{Identity: sign.Release, Statement: st}); err == nil {
			t.Errorf("signed %s", name)
		}
	}
}

// TestPermit: provenance is signed only with a permit for that very statement.
func TestPermit(t *testing.T) {
	l := newLab(t)
	s := l.signer()
	st, other := statement(t, intoto.PredicateProvenance, "x"), statement(t, intoto.PredicateProvenance, "y")
	for name, edit := range map[string]func(p *sign.Permit) *sign.Permit{
		"none":                  func(*sign.Permit) *sign.Permit { return nil },
		"empty":                 func(*sign.Permit) *sign.Permit { return &sign.Permit{} },
		"for another statement": func(*sign.Permit) *sign.Permit { return permit(other) },
		"for the payload, not the PAE": func(p *sign.Permit) *sign.Permit {
			p.Statement = hallmark.DigestOf(st)
			return p
		},
		"denied":             func(p *sign.Permit) *sign.Permit { p.Decision.Effect = hallmark.Deny; return p },
		"undecided":          func(p *sign.Permit) *sign.Permit { p.Decision = hallmark.Decision{}; return p },
		"allowed with a but": func(p *sign.Permit) *sign.Permit { p.Decision.Reasons = []hallmark.Reason{{Code: "X"}}; return p },
		"no policy":          func(p *sign.Permit) *sign.Permit { p.BuildPolicy = ""; return p },
	} {
		_, err := s.Sign(t.Context(), sign.Request{Identity: sign.Builder, Statement: st, Permit: edit(permit(st))})
		if hallmark.CodeOf(err) != hallmark.CodeBuildPolicy || hallmark.KindOf(err) != hallmark.KindDenied {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if l.log.Size() != 0 {
		t.Errorf("%d entries were logged", l.log.Size())
	}
	if _, err := s.Sign(t.Context(), sign.Request{Identity: sign.Builder, Statement: st, Permit: permit(st)}); err != nil {
		t.Error(err)
	}
	// An earlier bundle does not spare the permit.
	l.existing = func(context.Context, hallmark.Digest) ([]byte, bool, error) {
		t.Error("an earlier bundle was looked for without a permit")
		return nil, false, nil
	}
	if _, err := l.signer().Sign(t.Context(), sign.Request{Identity: sign.Builder, Statement: st}); hallmark.CodeOf(err) != hallmark.CodeBuildPolicy {
		t.Errorf("got %v", err)
	}
}

// TestExisting: only a bundle of this statement by this identity is adopted;
// anything else that the index may name is signed anew.
func TestExisting(t *testing.T) {
	l := newLab(t)
	st := statement(t, intoto.PredicateTestResult, "x")
	first, err := l.signer().Sign(t.Context(), sign.Request{Identity: sign.Observer, Statement: st})
	if err != nil {
		t.Fatal(err)
	}
	other, err := l.signer().Sign(t.Context(), sign.Request{Identity: sign.Observer, Statement: statement(t, intoto.PredicateTestResult, "y")})
	if err != nil {
		t.Fatal(err)
	}
	foreign := newLab(t)
	byOthers, err := foreign.signer().Sign(t.Context(), sign.Request{Identity: sign.Observer, Statement: st})
	if err != nil {
		t.Fatal(err)
	}
	swapSig := strings.Replace(string(first.JSON), sigOf(t, first.JSON), sigOf(t, other.JSON), 1)
	for _, tc := range []struct {
		name  string
		old   string
		adopt bool
	}{
		{"the bundle", string(first.JSON), true},
		{"of another statement", string(other.JSON), false},
		{"of another home", string(byOthers.JSON), false},
		{"another signature", swapSig, false},
		{"another payload", strings.Replace(string(first.JSON), base64.StdEncoding.EncodeToString(st), base64.StdEncoding.EncodeToString(statement(t, intoto.PredicateTestResult, "y")), 1), false},
		{"no log entry", strings.Replace(string(first.JSON), `"tlogEntries":[`, `"tlogEntries":[],"x":[`, 1), false},
		{"half", string(first.JSON[:len(first.JSON)/2]), false},
		{"empty", "", false},
		{"an object", "{}", false},
	} {
		l.existing = func(_ context.Context, d hallmark.Digest) ([]byte, bool, error) {
			if d != first.Statement {
				t.Errorf("asked for %s", d)
			}
			return []byte(tc.old), true, nil
		}
		before := l.log.Size()
		b, err := l.signer().Sign(t.Context(), sign.Request{Identity: sign.Observer, Statement: st})
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if adopted := l.log.Size() == before; adopted != tc.adopt {
			t.Errorf("%s: adopted %v", tc.name, adopted)
		}
		if tc.adopt && (b.Digest != first.Digest || b.LogIndex != first.LogIndex || !b.SignedAt.Equal(first.SignedAt)) {
			t.Errorf("%s: got %+v", tc.name, b)
		}
		if v, err := l.verifier.Verify(b.JSON); err != nil || v.Digest() != first.Statement {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	fault := errors.New("the index broke")
	l.existing = func(context.Context, hallmark.Digest) ([]byte, bool, error) { return nil, false, fault }
	if _, err := l.signer().Sign(t.Context(), sign.Request{Identity: sign.Observer, Statement: st}); !errors.Is(err, fault) && (err == nil || !strings.Contains(err.Error(), fault.Error())) {
		t.Errorf("got %v", err)
	}
}

func sigOf(t *testing.T, bundle []byte) string {
	t.Helper()
	var b struct {
		DSSE struct {
			Signatures []struct {
				Sig string `json:"sig"`
			} `json:"signatures"`
		} `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(bundle, &b); err != nil || len(b.DSSE.Signatures) != 1 {
		t.Fatal(err)
	}
	return b.DSSE.Signatures[0].Sig
}

func certOf(t *testing.T, bundle []byte) *x509.Certificate {
	t.Helper()
	var b struct {
		Material struct {
			Certificate struct {
				RawBytes string `json:"rawBytes"`
			} `json:"certificate"`
		} `json:"verificationMaterial"`
	}
	if err := json.Unmarshal(bundle, &b); err != nil {
		t.Fatal(err)
	}
	der, err := base64.StdEncoding.DecodeString(b.Material.Certificate.RawBytes)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestCertificateTimes: a certificate lives ten minutes, is not used near its
// end, and each identity has its own key.
func TestCertificateTimes(t *testing.T) {
	l := newLab(t)
	l.clock.move(30 * time.Minute) // so that it can be set back
	s := l.signer()
	n := 0
	cert := func(id sign.Identity) *x509.Certificate {
		t.Helper()
		n++
		p := map[sign.Identity]string{sign.Observer: intoto.PredicateTestResult, sign.Builder: intoto.PredicateProvenance}[id]
		st := statement(t, p, fmt.Sprint(n))
		b, err := s.Sign(t.Context(), sign.Request{Identity: id, Statement: st, Permit: permit(st)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.verifier.Verify(b.JSON); err != nil {
			t.Errorf("at %s: %v", l.clock.now(), err)
		}
		return certOf(t, b.JSON)
	}
	first := cert(sign.Observer)
	if life := first.NotAfter.Sub(first.NotBefore); life > 11*time.Minute || life < 10*time.Minute {
		t.Errorf("the certificate lives %s", life)
	}
	if !first.NotBefore.Before(l.clock.now()) || !l.clock.now().Before(first.NotAfter) {
		t.Errorf("valid from %s to %s at %s", first.NotBefore, first.NotAfter, l.clock.now())
	}
	if again := cert(sign.Observer); !again.Equal(first) {
		t.Error("a certificate was not used again")
	}
	if b := cert(sign.Builder); b.PublicKey.(*ecdsa.PublicKey).Equal(first.PublicKey) || b.URIs[0].String() == first.URIs[0].String() {
		t.Error("two identities share a key or a name")
	}
	l.clock.move(7*time.Minute + 58*time.Second)
	if again := cert(sign.Observer); !again.Equal(first) {
		t.Error("a certificate with more than two minutes left was not used")
	}
	l.clock.move(3 * time.Second)
	second := cert(sign.Observer)
	if second.Equal(first) || second.PublicKey.(*ecdsa.PublicKey).Equal(first.PublicKey) {
		t.Error("a certificate near its end was used, or its key")
	}
	l.clock.move(-20 * time.Minute) // a clock that is set back
	if third := cert(sign.Observer); third.Equal(first) || third.Equal(second) {
		t.Error("a certificate was used before its time")
	}
	l.clock.move(6 * 365 * 24 * time.Hour) // beyond the timestamp authority's certificate
	st := statement(t, intoto.PredicateTestResult, "much later")
	if b, err := s.Sign(t.Context(), sign.Request{Identity: sign.Observer, Statement: st}); err == nil {
		if _, err := l.verifier.Verify(b.JSON); err == nil {
			t.Error("a timestamp of an expired authority verifies")
		}
	}
}

func TestLogFailure(t *testing.T) {
	l := newLab(t)
	fault := errors.New("the log is full")
	l.log.Fail(fault)
	if b, err := l.signer().Sign(t.Context(), sign.Request{Identity: sign.Observer, Statement: statement(t, intoto.PredicateTestResult, "x")}); !errors.Is(err, fault) || b.JSON != nil {
		t.Errorf("a signature without a log entry: %v", err)
	}
}

func TestConcurrentSigning(t *testing.T) {
	l := newLab(t)
	s := l.signer()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			st := statement(t, intoto.PredicateTestResult, fmt.Sprint(i))
			b, err := s.Sign(t.Context(), sign.Request{Identity: sign.Observer, Statement: st})
			if err == nil {
				_, err = l.verifier.Verify(b.JSON)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func TestMemoryLogContract(t *testing.T) {
	l := newLab(t)
	signtest.Log(t, l.log, origin, l.keys.Checkpoint().Key.(ed25519.PublicKey))
}

func TestSeal(t *testing.T) {
	l, other := newLab(t), newLab(t)
	seal := func(k *sign.Keyring, purpose, text string) string {
		t.Helper()
		b, err := k.Seal(purpose, []byte(text))
		if err != nil || len(b) != 32 {
			t.Fatalf("%x, %v", b, err)
		}
		return string(b)
	}
	again, err := sign.Load(l.config(nil))
	if err != nil {
		t.Fatal(err)
	}
	if seal(l.keys, "saves", "x") != seal(again, "saves", "x") {
		t.Error("another seal after a restart")
	}
	seals := map[string]bool{seal(l.keys, "saves", "x"): true, seal(l.keys, "saves", "y"): true, seal(l.keys, "other", "x"): true, seal(other.keys, "saves", "x"): true}
	if len(seals) != 4 {
		t.Error("two different things have the same seal")
	}
}

// TestKeyFiles loads keys after each thing that may be wrong with a file.
func TestKeyFiles(t *testing.T) {
	l := newLab(t)
	dir := filepath.Join(l.dir, "keys")
	for _, d := range []string{dir, filepath.Join(l.dir, "pki")} {
		if st, err := os.Stat(d); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: mode %v, %v", d, st.Mode(), err)
		}
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 9 {
		t.Fatalf("%d keys, %v", len(names), err)
	}
	for _, n := range names {
		if st, err := n.Info(); err != nil || st.Mode() != 0o600 {
			t.Errorf("%s: mode %v, %v", n.Name(), st.Mode(), err)
		}
		// Every key is looked at, not only one.
		path := filepath.Join(dir, n.Name())
		for _, mode := range []os.FileMode{0o640, 0o604, 0o660, 0o644, 0o602} {
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
			if _, err := sign.Load(l.config(nil)); hallmark.KindOf(err) != hallmark.KindInvalid || !strings.Contains(hallmark.HintOf(err), "chmod 600 "+path) {
				t.Errorf("%s with mode %v: %v", n.Name(), mode, err)
			}
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "artifact.pem")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	policy, err := os.ReadFile(filepath.Join(dir, "policy.pem"))
	if err != nil {
		t.Fatal(err)
	}
	checkpoint, err := os.ReadFile(filepath.Join(dir, "checkpoint.pem"))
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte) func() error { return func() error { return os.WriteFile(path, b, 0o600) } }
	for name, spoil := range map[string]func() error{
		"empty": write(nil), "half": write(whole[:len(whole)/2]), "two keys": write(append(append([]byte{}, whole...), policy...)),
		"an Ed25519 key": write(checkpoint), "text": write([]byte("key")), "a certificate": write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}})),
		"not PKCS 8": write(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1, 2, 3}})),
		"huge":       write(append(append([]byte{}, whole...), make([]byte, 1<<17)...)),
		"a pipe":     func() error { return unix.Mkfifo(path, 0o600) },
		"a folder":   func() error { return os.Mkdir(path, 0o700) },
		"missing":    func() error { return nil },
	} {
		if err := errors.Join(os.Remove(path), spoil()); err != nil {
			t.Fatal(err)
		}
		if k, err := sign.Load(l.config(nil)); err == nil || k != nil {
			t.Errorf("%s: loaded", name)
		}
		if name != "missing" { // an existing key is never replaced, whatever it is
			if _, err := sign.Create(l.config(nil)); err == nil {
				t.Errorf("%s: created", name)
			}
		}
		if err := errors.Join(os.RemoveAll(path), os.WriteFile(path, whole, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	// A certificate of another key, and one that is gone.
	cert := filepath.Join(l.dir, "pki", "ca-intermediate.pem")
	good, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := os.ReadFile(filepath.Join(l.dir, "pki", "tsa-intermediate.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"another key's": foreign, "empty": {}, "half": good[:len(good)/2]} {
		if err := os.WriteFile(cert, b, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := sign.Load(l.config(nil)); hallmark.KindOf(err) != hallmark.KindInvalid {
			t.Errorf("%s certificate: %v", name, err)
		}
	}
	if err := os.Remove(cert); err != nil {
		t.Fatal(err)
	}
	if _, err := sign.Load(l.config(nil)); hallmark.KindOf(err) != hallmark.KindNotFound {
		t.Errorf("no certificate: %v", err)
	}
}

// TestCreateCompletes: what a killed Create left is completed, nothing replaced.
func TestCreateCompletes(t *testing.T) {
	l := newLab(t)
	for _, name := range []string{"keys/tsa.pem", "pki/tsa.pem", "pki/ca-root.pem"} {
		os.Remove(filepath.Join(l.dir, name))
	}
	for _, dir := range []string{"keys", "pki"} {
		if err := os.WriteFile(filepath.Join(l.dir, dir, ".part-1"), []byte("half a key"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again, err := sign.Create(l.config(nil))
	if err != nil {
		t.Fatal(err)
	}
	if again.Artifact().Hint != l.keys.Artifact().Hint || again.Policy().Hint != l.keys.Policy().Hint || again.Checkpoint().Hint != l.keys.Checkpoint().Hint {
		t.Error("a key was replaced")
	}
	if _, err := sign.Load(l.config(nil)); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(l.dir, "*", ".part-*")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestPassphrase(t *testing.T) {
	if testing.Short() {
		t.Skip("stretches a passphrase a hundred times; go test without -short does")
	}
	l := &lab{t: t, dir: t.TempDir(), clock: &clock{at: time.Now()}}
	right := []byte("correct horse")
	made, err := sign.Create(l.config(right))
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(filepath.Join(l.dir, "keys"), func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		if block, _ := pem.Decode(b); block == nil || block.Type != "HALLMARK ENCRYPTED PRIVATE KEY" || strings.Contains(string(b), "correct") {
			t.Errorf("%s is in the clear", p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	k, err := sign.Load(l.config(right))
	if err != nil || k.Artifact().Hint != made.Artifact().Hint {
		t.Errorf("with the right passphrase: %v", err)
	}
	for name, tc := range map[string]struct {
		pass string
		kind hallmark.Kind
	}{"wrong": {"battery staple", hallmark.KindInvalid}, "absent": {"", hallmark.KindUnavailable}, "longer": {"correct horse ", hallmark.KindInvalid}} {
		_, err := sign.Load(l.config([]byte(tc.pass)))
		if hallmark.KindOf(err) != tc.kind || (tc.pass != "" && strings.Contains(err.Error(), tc.pass)) {
			t.Errorf("%s passphrase: %v", name, err)
		}
		if _, err := sign.Create(l.config([]byte(tc.pass))); err == nil {
			t.Errorf("%s passphrase: created over encrypted keys", name)
		}
	}
	// A ciphertext that was altered does not open.
	path := filepath.Join(l.dir, "keys", "artifact.pem")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	i := strings.Index(string(block.Bytes), `"ciphertext":"`) + 30
	block.Bytes[i] ^= 1
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sign.Load(l.config(right)); hallmark.KindOf(err) != hallmark.KindInvalid {
		t.Errorf("altered ciphertext: %v", err)
	}
	// Keys in the clear, and a passphrase when they are completed: the owner would
	// believe them encrypted.
	plain := newLab(t)
	os.Remove(filepath.Join(plain.dir, "keys", "tsa.pem"))
	if _, err := sign.Create(plain.config(right)); hallmark.KindOf(err) != hallmark.KindInvalid || hallmark.HintOf(err) == "" {
		t.Errorf("a passphrase over keys in the clear: %v", err)
	}
}

func TestConfigIsComplete(t *testing.T) {
	l := newLab(t)
	good := sign.SignerConfig{Keyring: l.keys, Log: l.log, TrustDomain: domain, Clock: time.Now}
	for name, edit := range map[string]func(*sign.SignerConfig){
		"keyring": func(c *sign.SignerConfig) { c.Keyring = nil }, "log": func(c *sign.SignerConfig) { c.Log = nil },
		"domain": func(c *sign.SignerConfig) { c.TrustDomain = "" }, "clock": func(c *sign.SignerConfig) { c.Clock = nil },
	} {
		c := good
		edit(&c)
		if _, err := sign.NewSigner(c); err == nil {
			t.Errorf("a signer without %s", name)
		}
	}
	for _, c := range []sign.Config{{Dir: l.dir, Clock: time.Now}, {Dir: l.dir, TrustDomain: domain}} {
		if _, err := sign.Load(c); err == nil {
			t.Errorf("a keyring from %+v", c)
		}
	}
}
