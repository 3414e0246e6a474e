// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sign_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/sign"
)

func TestPolicyKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ada.key")
	made, err := sign.CreatePolicyKey(path, "ada", []byte("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	for file, mode := range map[string]os.FileMode{path: 0o600, path + ".pub": 0o644} {
		if st, err := os.Stat(file); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v %v, want mode %o", file, st.Mode(), err, mode)
		}
	}
	private, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(private, []byte("ENCRYPTED")) {
		t.Error("the key is not encrypted")
	}
	text, err := os.ReadFile(path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	pub, name, err := sign.ParsePolicyPublic(path+".pub", text)
	if err != nil || name != "ada" || pub.Hint != made.Hint || pub.PEM != made.PEM {
		t.Errorf("public half: %q %+v %v", name, pub, err)
	}
	key, err := sign.LoadPolicyKey(path, []byte("correct horse"))
	if err != nil || key.Public().Hint != made.Hint {
		t.Errorf("loading: %v", err)
	}
	for pass, kind := range map[string]hallmark.Kind{"": hallmark.KindUnavailable, "battery staple": hallmark.KindInvalid} {
		if _, err := sign.LoadPolicyKey(path, []byte(pass)); hallmark.KindOf(err) != kind {
			t.Errorf("passphrase %q: %v", pass, err)
		}
	}
	for _, gone := range []string{path, path + ".pub"} { // neither half is replaced
		other := strings.TrimSuffix(path, ".key") + "2.key"
		if err := os.WriteFile(strings.Replace(gone, path, other, 1), []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := sign.CreatePolicyKey(other, "ada", nil); hallmark.KindOf(err) != hallmark.KindInvalid {
			t.Errorf("%s is there: %v", gone, err)
		}
		if b, err := os.ReadFile(strings.Replace(gone, path, other, 1)); err != nil || string(b) != "mine" {
			t.Errorf("%s was replaced", gone)
		}
		for _, f := range []string{other, other + ".pub"} {
			_ = os.Remove(f)
		}
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := sign.LoadPolicyKey(path, []byte("correct horse")); err == nil {
		t.Error("a key that others can read was opened")
	}
	if _, err := sign.CreatePolicyKey(filepath.Join(t.TempDir(), "x"), "a b", nil); hallmark.KindOf(err) != hallmark.KindUsage {
		t.Errorf("name with a space: %v", err)
	}
}

func TestParsePolicyPublic(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ada.key")
	made, err := sign.CreatePolicyKey(path, "ada", nil)
	if err != nil {
		t.Fatal(err)
	}
	private, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if p, name, err := sign.ParsePolicyPublic("f", []byte(made.PEM)); err != nil || name != "" || p.Hint != made.Hint {
		t.Errorf("a key without a name: %q %v", name, err)
	}
	for name, text := range map[string]string{
		"private":         string(private),
		"two keys":        made.PEM + made.PEM,
		"other text":      "hello\n" + made.PEM,
		"name with space": "hallmark administrator a b\n" + made.PEM,
		"two lines":       "hallmark administrator ada\nx\n" + made.PEM,
		"text after":      made.PEM + "x",
		"empty":           "",
		"not PEM":         "-----BEGIN PUBLIC KEY-----",
		"large":           made.PEM + strings.Repeat("\n", 20<<10),
		"Ed25519":         "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n",
	} {
		if _, _, err := sign.ParsePolicyPublic("f", []byte(text)); hallmark.KindOf(err) != hallmark.KindInvalid || !strings.HasPrefix(err.Error(), "f: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParsePolicyPublic(f *testing.F) {
	f.Add([]byte("hallmark administrator ada\n-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAESfZwG3hREdc5/c5lDhF+jRUjilZP\nnI50HmetEynE0C1pP7ltN3k6+G5lkbcSIAsP/z19HNi3pI1HQ6ZYyPeR0Q==\n-----END PUBLIC KEY-----\n"))
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		pub, name, err := sign.ParsePolicyPublic("f", b)
		if err != nil {
			return
		}
		again, _, err := sign.ParsePolicyPublic("f", []byte(pub.PEM))
		if err != nil || again.Hint != pub.Hint || name != "" && sign.CheckAdministrator(name) != nil {
			t.Errorf("%q %v", name, err)
		}
	})
}
