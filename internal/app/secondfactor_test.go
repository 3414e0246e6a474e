// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sign"
)

// fido is a FIDO authenticator in software: what OpenSSH's PROTOCOL.u2f says of
// sk-ssh-ed25519@openssh.com.
type fido struct {
	pub     ssh.PublicKey
	private ed25519.PrivateKey
	flags   byte
	counter uint32
}

func newFIDO(t *testing.T) *fido {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := ssh.ParsePublicKey(ssh.Marshal(struct {
		Name        string
		Key         []byte
		Application string
	}{ssh.KeyAlgoSKED25519, public, "ssh:"}))
	if err != nil {
		t.Fatal(err)
	}
	return &fido{pub: pub, private: private, flags: 1}
}

// sign is ssh-keygen -Y sign by the key.
func (f *fido) sign(message []byte, namespace string) []byte {
	f.counter++
	hash := sha256.Sum256(message)
	data := append([]byte("SSHSIG"), ssh.Marshal(struct{ Namespace, Reserved, Hash, Sum string }{namespace, "", "sha256", string(hash[:])})...)
	app, sum := sha256.Sum256([]byte("ssh:")), sha256.Sum256(data)
	rest := binary.BigEndian.AppendUint32([]byte{f.flags}, f.counter)
	signed := append(append(append([]byte{}, app[:]...), rest...), sum[:]...)
	return sshsig.Armor(&sshsig.Signature{Version: 1, PublicKey: f.pub, Namespace: namespace, HashAlgorithm: sshsig.HashSHA256,
		Signature: &ssh.Signature{Format: ssh.KeyAlgoSKED25519, Blob: ed25519.Sign(f.private, signed), Rest: rest}})
}

// TestSecondFactor: once the policy requires it, no policy comes into force without
// a touch of enough administrators' FIDO keys, and none that did is opened.
func TestSecondFactor(t *testing.T) {
	l := newCouncilLab(t)
	l.sign("ada")
	l.sign("grace")
	keys := map[string]*fido{"ada": newFIDO(t), "grace": newFIDO(t)}
	if _, err := PolicySet(t.Context(), l.home, nil, [][2]string{{"access.secondFactor", "required"}}); hallmark.KindOf(err) != hallmark.KindUsage {
		t.Fatalf("nobody could sign any more: %v", err)
	}
	for name, k := range keys {
		file := filepath.Join(l.dir, name+".sk.pub")
		if err := os.WriteFile(file, ssh.MarshalAuthorizedKey(k.pub), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ChangeAccess(t.Context(), l.home, nil, FactorChange{Administrator: name, KeyFiles: []string{file}}.Apply); err != nil {
			t.Fatal(err)
		}
		l.sign("ada")
		l.sign("grace")
	}
	l.set("access.secondFactor", "required")
	l.sign("ada")
	if s := l.sign("grace"); !s.InForce {
		t.Fatalf("%+v", s)
	}

	l.set("build.cpus", "3")
	text := func(name string) []byte {
		b, err := PolicyConfirmation(t.Context(), l.home, name)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	try := func(name string, factor []byte) (Signing, error) {
		p, err := PolicyReview(t.Context(), l.home)
		if err != nil {
			t.Fatal(err)
		}
		return PolicySign(t.Context(), SignConfig{Home: l.home, Key: l.key(name), Digest: p.Digest, SecondFactor: factor})
	}
	untouched := *keys["ada"]
	untouched.flags = 0
	_, soft, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	softSigner, err := ssh.NewSignerFromKey(soft)
	if err != nil {
		t.Fatal(err)
	}
	bySoft, err := sshsig.Sign(bytes.NewReader(text("ada")), softSigner, sshsig.HashSHA512, confirmNamespace)
	if err != nil {
		t.Fatal(err)
	}
	for name, factor := range map[string][]byte{
		"none": nil, "another's key": keys["grace"].sign(text("ada"), confirmNamespace), "another's text": keys["ada"].sign(text("grace"), confirmNamespace),
		"another namespace": keys["ada"].sign(text("ada"), "git"), "not touched": untouched.sign(text("ada"), confirmNamespace), "unknown key": newFIDO(t).sign(text("ada"), confirmNamespace),
		"no FIDO key": sshsig.Armor(bySoft), "text": []byte("x"),
	} {
		if s, err := try("ada", factor); hallmark.CodeOf(err) != hallmark.CodePolicySecondFactor || s.InForce {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	old := keys["ada"].sign(text("ada"), confirmNamespace)
	if s, err := try("ada", old); err != nil || s.InForce || len(s.Signed) != 1 {
		t.Fatalf("%+v, %v", s, err)
	}
	if s, err := try("grace", keys["grace"].sign(text("grace"), confirmNamespace)); err != nil || !s.InForce {
		t.Fatalf("%+v, %v", s, err)
	}
	if _, err := l.inForce(); err != nil {
		t.Fatal(err)
	}
	// What confirmed one version confirms no other.
	l.set("build.cpus", "4")
	if _, err := try("ada", old); hallmark.CodeOf(err) != hallmark.CodePolicySecondFactor {
		t.Errorf("a confirmation used again: %v", err)
	}

	// Who has both policy keys and goes round the command puts a policy in force by
	// signatures alone, twice, so that the second one's predecessor asks for nothing.
	// Nor does it help to name one as the version before that never was in force.
	for _, invented := range []bool{false, false, true} {
		stolen(t, l, invented)
		if _, err := l.inForce(); hallmark.CodeOf(err) != hallmark.CodePolicySecondFactor {
			t.Fatalf("a policy of stolen keys is opened: %v", err)
		}
	}
}

// stolen puts a policy without second factor in force as who holds the keys could.
func stolen(t *testing.T, l *councilLab, invented bool) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	h, err := openRoots(l.home)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.readPolicy(); err != nil && hallmark.CodeOf(err) != hallmark.CodePolicySecondFactor {
		t.Fatal(err)
	}
	next, err := h.document.Set([][2]string{{"access.secondFactor", "none"}}, now())
	if err != nil {
		t.Fatal(err)
	}
	if invented {
		first := next
		first.Version, first.Previous = 1, ""
		b, err := first.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if next.Previous, err = h.stores.blobs.Put(ctx, b); err != nil {
			t.Fatal(err)
		}
	}
	doc, err := next.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.loadKeys(nil); err != nil {
		t.Fatal(err)
	}
	p := &Proposal{Version: next.Version, Digest: hallmark.DigestOf(doc), Previous: next.Previous, bytes: doc}
	var names []string
	for _, a := range h.administrators() {
		if err := h.approve(ctx, p, a, loadKey(t, l.key(a.name))); err != nil {
			t.Fatal(err)
		}
		names = append(names, a.name)
	}
	signed, err := h.approvals(ctx, p.approval)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.adoptPolicy(doc, joined(names, signed)); err != nil {
		t.Fatal(err)
	}
}

// TestSecondFactorSingle: a home of one operator says that it can't have one.
func TestSecondFactorSingle(t *testing.T) {
	home := filepath.Join(t.TempDir(), "home")
	if _, err := Init(t.Context(), InitConfig{Home: home, SingleOperator: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := PolicySet(t.Context(), home, nil, [][2]string{{"access.secondFactor", "required"}}); hallmark.KindOf(err) != hallmark.KindUsage {
		t.Errorf("%v", err)
	}
}

func TestSecondFactorKeys(t *testing.T) {
	k := newFIDO(t)
	line := string(ssh.MarshalAuthorizedKey(k.pub))
	line = line[:len(line)-1]
	good := access.Section{SecondFactors: []access.SecondFactor{{Administrator: "ada", Key: line}}}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	if got := good.FactorOf(ssh.FingerprintSHA256(k.pub)); got != "ada" {
		t.Errorf("%q", got)
	}
	for name, bad := range map[string][]access.SecondFactor{
		"twice": {{Administrator: "ada", Key: line}, {Administrator: "grace", Key: line}}, "no name": {{Key: line}}, "text": {{Administrator: "ada", Key: "sk-ssh-ed25519@openssh.com AAAA"}},
	} {
		if err := (&access.Section{SecondFactors: bad}).Check(); err == nil {
			t.Errorf("accepted %s", name)
		}
	}
	raw, err := json.Marshal(good)
	if err != nil {
		t.Fatal(err)
	}
	if len(policy.Changes(policy.Document{}, policy.Document{Access: &good})) == 0 {
		t.Errorf("nobody who signs is shown %s", raw)
	}
}

func loadKey(t *testing.T, path string) *sign.PolicyKey {
	t.Helper()
	k, err := sign.LoadPolicyKey(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return k
}
