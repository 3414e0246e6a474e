// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/hallmark-sc/hallmark"
)

type key struct {
	ssh.Signer
	pub     string
	private []byte
}

func newKey(t testing.TB) key {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return key{signer, line(signer.PublicKey()), private}
}

func line(pub ssh.PublicKey) string {
	return pub.Type() + " " + base64.StdEncoding.EncodeToString(pub.Marshal())
}

func sign(t testing.TB, k ssh.Signer, message []byte, namespace string) []byte {
	t.Helper()
	sig, err := sshsig.Sign(bytes.NewReader(message), k, sshsig.HashSHA512, namespace)
	if err != nil {
		t.Fatal(err)
	}
	return sshsig.Armor(sig)
}

func parse(t testing.TB, text string) *AllowedSigners {
	t.Helper()
	s, err := ParseAllowedSigners("allowed_signers", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParseAllowedSigners(t *testing.T) {
	k := newKey(t).pub
	s := parse(t, "# comment\n\na@example.org,b@example.org "+k+" a comment here\n"+
		`c@example.org namespaces="file,git",valid-after="20240101Z",valid-before="202501010000Z" `+k+"\r\n"+
		`b@example.org Namespaces="git" `+k)
	if diff := cmp.Diff([]string{"a@example.org", "b@example.org", "c@example.org"}, s.Names()); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	if got := s.lines[1].notBefore; !got.Equal(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("valid after %v", got)
	}
}

func TestParseAllowedSignersRefuses(t *testing.T) {
	k := newKey(t).pub
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weakPub, err := ssh.NewPublicKey(&weak.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	blob := strings.Fields(k)[1]
	for name, text := range map[string]string{
		"wildcard": "*@example.org " + k, "negation": "!a@example.org " + k, "empty principal": "a,,b " + k,
		"cert-authority": "a cert-authority " + k, "unknown option": "a no-touch-required " + k,
		"option twice": `a namespaces="file",namespaces="git" ` + k, "no value": "a namespaces " + k,
		"pattern": `a namespaces="*" ` + k, "trailing comma": `a namespaces="git", ` + k, "open value": `a namespaces="git ` + k,
		"half quoted": `a valid-after=20240101Z" ` + k, "local time": `a valid-after="20240101" ` + k, "bad time": `a valid-after="20241301Z" ` + k,
		"no key": "a", "no blob": "a ssh-ed25519", "bad base64": "a ssh-ed25519 AAAA*", "other type": "a ssh-rsa " + blob,
		"dsa": "a ssh-dss AAAA", "certificate": "a ssh-ed25519-cert-v01@openssh.com AAAA", "short rsa": "a " + line(weakPub),
	} {
		_, err := ParseAllowedSigners("f", []byte("# one\n"+text+"\n"))
		if err == nil || !strings.HasPrefix(err.Error(), "f:2: ") || hallmark.KindOf(err) != hallmark.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVerifySSH(t *testing.T) {
	k, other := newKey(t), newKey(t)
	message := []byte("tree 1\n\nmessage\n")
	good := sign(t, k, message, "git")
	at := time.Date(2024, 6, 1, 0, 0, 0, 0, time.UTC)
	both := "a@example.org,alias@example.org " + k.pub + "\n"
	for name, tc := range map[string]struct {
		allowed string
		sig     []byte
		want    error
	}{
		"good":             {both, good, nil},
		"in window":        {`a valid-after="20240531Z",valid-before="20240602Z" ` + k.pub, good, nil},
		"one line of two":  {`x valid-before="20240101Z" ` + k.pub + "\n" + both, good, nil},
		"nobody":           {"", good, ErrNotAllowed},
		"other key":        {"a " + other.pub, good, ErrNotAllowed},
		"other namespace":  {`a namespaces="file" ` + k.pub, good, ErrNotAllowed},
		"not yet":          {`a valid-after="20240701Z" ` + k.pub, good, ErrNotAllowed},
		"no longer":        {`a valid-before="20240601Z" ` + k.pub, good, ErrNotAllowed},
		"signed as file":   {both, sign(t, k, message, "file"), ErrInvalid},
		"trailing":         {both, append(bytes.Clone(good), "x"...), ErrMalformed},
		"two signatures":   {both, append(bytes.Clone(good), good...), ErrMalformed},
		"leading":          {both, append([]byte("x\n"), good...), ErrMalformed},
		"not armored":      {both, []byte("hello"), ErrMalformed},
		"headers in armor": {both, bytes.Replace(good, []byte("-----\n"), []byte("-----\nA: b\n\n"), 1), ErrMalformed},
	} {
		got, err := parse(t, tc.allowed).VerifySSH(tc.sig, message, at)
		if !errors.Is(err, tc.want) || (tc.want == nil) != (err == nil) || (err != nil && got != nil) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	got, err := parse(t, both).VerifySSH(good, message, at)
	if err != nil {
		t.Fatal(err)
	}
	print := ssh.FingerprintSHA256(k.PublicKey())
	want := []hallmark.Principal{{Name: "a@example.org", Key: print, Method: "ssh"}, {Name: "alias@example.org", Key: print, Method: "ssh"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("principals (-want +got):\n%s", diff)
	}
	if _, err := parse(t, both).VerifySSH(good, append(message, 'x'), at); !errors.Is(err, ErrInvalid) {
		t.Errorf("another message: %v", err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 2
		if p, err := parse(t, both).VerifySSH(bad, message, at); err == nil {
			t.Errorf("byte %d changed: accepted for %v", i, p)
		}
	}
}

func TestKeyTypes(t *testing.T) {
	message := []byte("m")
	for _, bits := range []int{1024, 2048} {
		private, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		signer, err := ssh.NewSignerFromKey(private)
		if err != nil {
			t.Fatal(err)
		}
		s := &AllowedSigners{lines: []allowed{{principals: []string{"a"}, key: signer.PublicKey()}}}
		if _, err := s.VerifySSH(sign(t, signer, message, "git"), message, time.Now()); (bits < 2048) != errors.Is(err, ErrNotAllowed) {
			t.Errorf("RSA %d: %v", bits, err)
		}
	}
	private, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parse(t, "a "+line(signer.PublicKey())).VerifySSH(sign(t, signer, message, "git"), message, time.Now()); err != nil {
		t.Errorf("ECDSA: %v", err)
	}
}

// TestSecurityKey plays a FIDO key: a touch is required.
func TestSecurityKey(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const application = "ssh:"
	pub, err := ssh.ParsePublicKey(ssh.Marshal(struct {
		Name        string
		Key         []byte
		Application string
	}{ssh.KeyAlgoSKED25519, public, application}))
	if err != nil {
		t.Fatal(err)
	}
	message := []byte("m")
	for flags, want := range map[byte]error{1: nil, 5: nil, 0: ErrInvalid, 4: ErrInvalid} {
		hash := sha256.Sum256(message)
		data := append([]byte("SSHSIG"), ssh.Marshal(struct{ Namespace, Reserved, Hash, Sum string }{"git", "", "sha256", string(hash[:])})...)
		app, sum := sha256.Sum256([]byte(application)), sha256.Sum256(data)
		rest := binary.BigEndian.AppendUint32([]byte{flags}, 7)
		signed := append(append(append([]byte{}, app[:]...), rest...), sum[:]...)
		sig := &sshsig.Signature{Version: 1, PublicKey: pub, Namespace: "git", HashAlgorithm: sshsig.HashSHA256,
			Signature: &ssh.Signature{Format: ssh.KeyAlgoSKED25519, Blob: ed25519.Sign(private, signed), Rest: rest}}
		_, err := parse(t, "a "+line(pub)).VerifySSH(sshsig.Armor(sig), message, time.Now())
		if !errors.Is(err, want) || (want == nil) != (err == nil) {
			t.Errorf("flags %d: %v", flags, err)
		}
	}
}

// TestOpenSSH checks that ssh-keygen agrees: we accept what it signs, and it
// accepts the list and a signature made here.
func TestOpenSSH(t *testing.T) {
	program, err := exec.LookPath("ssh-keygen")
	if err != nil {
		t.Skip("ssh-keygen is not here: signatures are made and verified by one library only")
	}
	dir, k := t.TempDir(), newKey(t)
	allowed := `a@example.org namespaces="git",valid-after="20200101Z" ` + k.pub + "\n"
	block, err := ssh.MarshalPrivateKey(ed25519.PrivateKey(k.private), "")
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"key": pem.EncodeToMemory(block), "key.pub": []byte(k.pub + "\n"), "m": []byte("message"), "allowed": []byte(allowed),
		"ours": sign(t, k, []byte("message"), "git")} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command(program, "-Y", "sign", "-n", "git", "-f", filepath.Join(dir, "key"), filepath.Join(dir, "m")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	theirs, err := os.ReadFile(filepath.Join(dir, "m.sig"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parse(t, allowed).VerifySSH(theirs, []byte("message"), time.Now()); err != nil {
		t.Errorf("signature of ssh-keygen: %v", err)
	}
	cmd := exec.Command(program, "-Y", "verify", "-n", "git", "-I", "a@example.org", "-f", filepath.Join(dir, "allowed"), "-s", filepath.Join(dir, "ours"))
	cmd.Stdin = strings.NewReader("message")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("ssh-keygen refuses ours: %v: %s", err, out)
	}
}

func FuzzParseAllowedSigners(f *testing.F) {
	k := newKey(f).pub
	f.Add("a@example.org " + k)
	f.Add(`a,b namespaces="git",valid-after="20240101Z" ` + k + " c")
	f.Add("* cert-authority ssh-rsa AAAA")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseAllowedSigners("f", []byte(text))
		if err != nil {
			if s != nil || !strings.HasPrefix(err.Error(), "f:") {
				t.Errorf("%v", err)
			}
			return
		}
		for _, name := range s.Names() {
			if name == "" || strings.ContainsAny(name, "*?!\" ,") {
				t.Errorf("accepted %q", name)
			}
		}
	})
}

func FuzzVerifySSH(f *testing.F) {
	k := newKey(f)
	s := parse(f, "a "+k.pub)
	f.Add([]byte("other"), sign(f, k, []byte("message"), "git"))
	f.Add([]byte("other"), []byte("-----BEGIN SSH SIGNATURE-----\nU1NIU0lH\n-----END SSH SIGNATURE-----\n"))
	f.Fuzz(func(t *testing.T, message, sig []byte) {
		if _, err := s.VerifySSH(sig, message, time.Now()); err == nil && string(message) != "message" {
			t.Errorf("accepted for %q", message)
		}
	})
}
