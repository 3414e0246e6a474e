// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
)

// needed wants a program to be here: without it nothing would be tested.
func needed(t testing.TB, program, debian string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Fatalf("%s is missing: apt-get install %s", program, debian)
	}
}

// gnupg is a home of GnuPG of its own, with a short path for its socket.
type gnupg struct {
	t    testing.TB
	home string
}

func newGnuPG(t testing.TB) gnupg {
	t.Helper()
	needed(t, "gpg", "gnupg")
	dir, err := os.MkdirTemp("/tmp", "hm-gpg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		exec.Command("gpgconf", "--homedir", dir, "--kill", "all").Run()
		os.RemoveAll(dir)
	})
	return gnupg{t, dir}
}

func (g gnupg) run(stdin []byte, args ...string) []byte {
	g.t.Helper()
	out, err := g.try(stdin, args...)
	if err != nil {
		g.t.Fatal(err)
	}
	return out
}

func (g gnupg) try(stdin []byte, args ...string) ([]byte, error) {
	cmd := exec.Command("gpg", append([]string{"--homedir", g.home, "--batch", "--yes", "--quiet", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("gpg %v: %w: %s", args, err, stderr.String())
	}
	return out, nil
}

// key makes a key and returns its fingerprint.
func (g gnupg) key(mail, algo, usage, life string, more ...string) string {
	g.t.Helper()
	g.run(nil, append(more, "--quick-generate-key", mail, algo, usage, life)...)
	for line := range strings.SplitSeq(string(g.run(nil, append(more, "--with-colons", "--list-keys", mail)...)), "\n") {
		if f := strings.Split(line, ":"); f[0] == "fpr" {
			return f[9]
		}
	}
	g.t.Fatal("no fingerprint")
	return ""
}

// sign signs as git has gpg sign.
func (g gnupg) sign(data []byte, user string, more ...string) []byte {
	g.t.Helper()
	return g.run(data, append(more, "-bsau", user)...)
}

// signers reads the file of keys of principals with one key each.
func (g gnupg) signers(of map[string]string) *Signers {
	g.t.Helper()
	var file bytes.Buffer
	for who, print := range of {
		fmt.Fprintf(&file, "%s %s\n%s", who, print, g.run(nil, "--armor", "--export", print))
	}
	keys, err := ParseOpenPGPKeys("keys", file.Bytes())
	if err != nil {
		g.t.Fatal(err)
	}
	return NewSigners(nil, keys, nil)
}

func TestOpenPGP(t *testing.T) {
	g := newGnuPG(t)
	message, now := []byte("tree 1\n\nmessage\n"), time.Now()
	yesterday := fmt.Sprintf("--faked-system-time=%s!", now.Add(-24*time.Hour).UTC().Format("20060102T150405"))
	first := g.key("a@example.org", "ed25519", "sign", "0")
	rsa := g.key("rsa@example.org", "rsa2048", "sign", "0")
	other := g.key("other@example.org", "ed25519", "sign", "0")

	parts := g.key("sub@example.org", "ed25519", "cert", "0", yesterday)
	g.run(nil, yesterday, "--quick-add-key", parts, "ed25519", "sign", "0")
	expired := g.key("expired@example.org", "ed25519", "sign", "seconds=3600", yesterday)
	late := g.key("late@example.org", "ed25519", "cert", "0", yesterday)
	g.run(nil, yesterday, "--quick-add-key", late, "ed25519", "sign", "seconds=3600")

	revoked := g.key("revoked@example.org", "ed25519", "sign", "0")
	byRevoked := g.sign(message, revoked)
	revocation, err := os.ReadFile(filepath.Join(g.home, "openpgp-revocs.d", revoked+".rev"))
	if err != nil {
		t.Fatal(err)
	}
	g.run(bytes.Replace(revocation, []byte(":-----BEGIN"), []byte("-----BEGIN"), 1), "--import")

	now = time.Now().Add(time.Second) // keys and signatures count whole seconds
	s := g.signers(map[string]string{"a@example.org,alias@example.org": first, "rsa@example.org": rsa, "sub@example.org": parts, "expired@example.org": expired,
		"late@example.org": late, "revoked@example.org": revoked})
	good := g.sign(message, first)
	for name, tc := range map[string]struct {
		sig  []byte
		want error
	}{
		"good":             {good, nil},
		"rsa":              {g.sign(message, rsa), nil},
		"subkey":           {g.sign(message, parts), nil},
		"sha512":           {g.sign(message, rsa, "--digest-algo", "SHA512"), nil},
		"unregistered":     {g.sign(message, other), ErrNotAllowed},
		"expired key":      {g.sign(message, expired, yesterday), ErrExpired},
		"expired subkey":   {g.sign(message, late, yesterday), ErrExpired},
		"revoked":          {byRevoked, ErrRevoked},
		"sha1":             {g.sign(message, rsa, "--digest-algo", "SHA1", "--allow-weak-digest-algos"), ErrWeak},
		"md5":              {g.sign(message, rsa, "--digest-algo", "MD5", "--allow-weak-digest-algos"), ErrWeak},
		"expired itself":   {g.sign(message, parts, yesterday, "--default-sig-expire", "seconds=60"), ErrExpired},
		"notation":         {g.sign(message, first, "--sig-notation", "x@example.org=y"), ErrAmbiguous},
		"critical":         {g.sign(message, first, "--sig-notation", "!x@example.org=y"), ErrAmbiguous},
		"two signers":      {g.sign(message, first, "-u", rsa), ErrAmbiguous},
		"two armors":       {append(bytes.Clone(good), good...), ErrAmbiguous},
		"text":             {g.sign(message, first, "--textmode"), ErrInvalid},
		"other bytes":      {g.sign(append(message, 'x'), first), ErrInvalid},
		"trailing":         {append(bytes.Clone(good), 'x'), ErrMalformed},
		"named as SSH":     {bytes.ReplaceAll(good, []byte("PGP"), []byte("SSH")), ErrMalformed},
		"named as message": {bytes.ReplaceAll(good, []byte("PGP SIGNATURE"), []byte("PGP MESSAGE")), ErrFormat},
		"leading":          {append([]byte("x\n"), good...), ErrFormat},
		"a message":        {g.run(message, "--armor", "--sign", "-u", first), ErrFormat},
		"empty":            {[]byte("-----BEGIN PGP SIGNATURE-----\n\n=twTO\n-----END PGP SIGNATURE-----\n"), ErrMalformed},
	} {
		got, err := s.Verify(tc.sig, message, now)
		if !errors.Is(err, tc.want) || (tc.want == nil) != (err == nil) || (err != nil && got != nil) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if tc.want != nil && CodeOf(err) == "" {
			t.Errorf("%s: no code", name)
		}
	}
	got, err := s.Verify(good, message, now)
	if err != nil {
		t.Fatal(err)
	}
	want := []hallmark.Principal{{Name: "a@example.org", Key: "openpgp:" + first, Method: "openpgp"}, {Name: "alias@example.org", Key: "openpgp:" + first, Method: "openpgp"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("principals (-want +got):\n%s", diff)
	}
	// Before the key was made nothing was signed by it.
	if _, err := s.Verify(good, message, now.Add(-time.Hour)); err == nil {
		t.Error("accepted before the key was made")
	}
	// A signature counts only as what is registered.
	if _, err := NewSigners(parse(t, "a@example.org "+newKey(t).pub), nil, nil).Verify(good, message, now); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("only SSH is registered: %v", err)
	}
	if _, err := s.Verify(sign(t, newKey(t), message, "git"), message, now); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("only OpenPGP is registered: %v", err)
	}
	// The checksum of the armor and the hint of the key's id are covered by no
	// OpenPGP signature; everything that it says is.
	whole, err := oneSignature(good)
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 2
		p, err := s.Verify(bad, message, now)
		if err != nil {
			continue
		}
		if sig, err := oneSignature(bad); err != nil || !bytes.Equal(sig.HashSuffix, whole.HashSuffix) {
			t.Errorf("byte %d changed: accepted for %v", i, p)
		}
	}
}

// TestOpenPGPCapability plays keys that gpg would not sign with: not marked for
// signing, or bound by SHA-1.
func TestOpenPGPCapability(t *testing.T) {
	message, now := []byte("m"), time.Now()
	for name, tc := range map[string]struct {
		alter func(*packet.Signature, *packet.Config)
		want  error
	}{
		"for signing": {func(*packet.Signature, *packet.Config) {}, nil},
		"for nothing": {func(s *packet.Signature, _ *packet.Config) { s.FlagSign = false }, ErrUsage},
		"no flags":    {func(s *packet.Signature, _ *packet.Config) { s.FlagsValid = false }, ErrUsage},
	} {
		config := &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return now.Add(-time.Hour) }}
		e, err := openpgp.NewEntity("A", "", "a@example.org", config)
		if err != nil {
			t.Fatal(err)
		}
		var armored bytes.Buffer
		if err := openpgp.ArmoredDetachSign(&armored, []*openpgp.Entity{e}, bytes.NewReader(message), &openpgp.SignParams{Config: config}); err != nil {
			t.Fatal(err)
		}
		for _, id := range e.Identities {
			for _, c := range id.SelfCertifications {
				tc.alter(c.Packet, config)
				if err := c.Packet.SignUserId(id.UserId.Id, e.PrimaryKey, e.PrivateKey, config); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, d := range e.DirectSignatures {
			tc.alter(d.Packet, config)
			if err := d.Packet.SignDirectKeyBinding(e.PrimaryKey, e.PrivateKey, config); err != nil {
				t.Fatal(err)
			}
		}
		var public bytes.Buffer
		if err := e.Serialize(&public); err != nil {
			t.Fatal(err)
		}
		k, err := RegisteredOpenPGP("a@example.org", fingerprint(e.PrimaryKey), base64.StdEncoding.EncodeToString(public.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		sig := append(bytes.TrimRight(armored.Bytes(), "\n"), '\n')
		if _, err := NewSigners(nil, []OpenPGPSigner{k}, nil).Verify(sig, message, now); !errors.Is(err, tc.want) || (tc.want == nil) != (err == nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseOpenPGPKeysRefuses(t *testing.T) {
	g := newGnuPG(t)
	print := g.key("a@example.org", "ed25519", "sign", "0")
	armored := string(g.run(nil, "--armor", "--export", print))
	secret := string(g.run(nil, "--armor", "--export-secret-keys", print))
	for name, text := range map[string]string{
		"no line": armored, "no key": "a " + print + "\n", "short": "a " + print[24:] + "\n" + armored, "lower": "a " + strings.ToLower(print) + "\n" + armored,
		"pattern": "* " + print + "\n" + armored, "twice": "a " + print + "\n" + armored + armored, "named twice": "a " + print + "\nb " + print + "\n" + armored,
		"open": "a " + print + "\n-----BEGIN PGP PUBLIC KEY BLOCK-----\n", "private": "a " + print + "\n" + secret, "three fields": "a " + print + " b\n" + armored,
		"empty principal": "a,,b " + print + "\n" + armored, "no armor": "a " + print + "\n-----BEGIN PGP PUBLIC KEY BLOCK-----\n-----END PGP PUBLIC KEY BLOCK-----\n",
	} {
		if k, err := ParseOpenPGPKeys("f", []byte(text)); err == nil || !strings.HasPrefix(err.Error(), "f:") || hallmark.KindOf(err) != hallmark.KindInvalid {
			t.Errorf("%s: %v, %v", name, k, err)
		}
	}
	if _, err := RegisteredOpenPGP("a", strings.Repeat("A", 40), base64.StdEncoding.EncodeToString(g.run(nil, "--export", print))); err == nil {
		t.Error("a key under another fingerprint")
	}
}

func FuzzVerifyOpenPGP(f *testing.F) {
	g := newGnuPG(f)
	print := g.key("a@example.org", "ed25519", "sign", "0")
	s := g.signers(map[string]string{"a@example.org": print})
	f.Add([]byte("other"), g.sign([]byte("message"), print))
	f.Add([]byte("other"), []byte("-----BEGIN PGP SIGNATURE-----\n\niHUE\n-----END PGP SIGNATURE-----\n"))
	at := time.Now()
	f.Fuzz(func(t *testing.T, message, sig []byte) {
		if _, err := s.Verify(sig, message, at); err == nil && string(message) != "message" {
			t.Errorf("accepted for %q", message)
		}
	})
}

func FuzzReadOpenPGPKey(f *testing.F) {
	g := newGnuPG(f)
	print := g.key("a@example.org", "ed25519", "sign", "0")
	f.Add(g.run(nil, "--armor", "--export", print))
	f.Add(g.run(nil, "--export", print))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := ReadOpenPGPKey(data)
		if err == nil && (k.Fingerprint == "" || len(k.Key) == 0) {
			t.Errorf("accepted %q", data)
		}
	})
}
