// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"os"
	"slices"
	"testing"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/verify"
)

// TestOldHomeCantWrap: roots from before there was a signer of wrapped commands.
func TestOldHomeCantWrap(t *testing.T) {
	home := t.TempDir()
	if _, err := Init(t.Context(), InitConfig{Home: home, SingleOperator: true}); err != nil {
		t.Fatal(err)
	}
	h, err := OpenHome(home, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.mayWrap(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(h.Roots())
	if err != nil {
		t.Fatal(err)
	}
	roots, err := verify.ParseRoots(b)
	if err != nil {
		t.Fatal(err)
	}
	roots.Signers = slices.DeleteFunc(roots.Signers, func(s verify.Signer) bool { return s.Name == wrapperName })
	if b, err = roots.Encode(); err != nil {
		t.Fatal(err)
	}
	if h.verifier, err = verify.New(verify.Config{Roots: b, Pin: hallmark.DigestOf(b), TrustedRoot: h.trustedJSON}); err != nil {
		t.Fatal(err)
	}
	if err := h.mayWrap(); hallmark.CodeOf(err) != hallmark.CodeSignerNotAuthorized || hallmark.HintOf(err) == "" {
		t.Errorf("%v", err)
	}
}

// TestHidden: values of what is named like a credential, the longest first.
func TestHidden(t *testing.T) {
	for _, name := range []string{"GITHUB_TOKEN", "npm_config__authToken", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "PGPASSWORD", "SSH_PRIVATE_KEY", "MY_API_KEY", "CI_PAT"} {
		if !secretName.MatchString(name) {
			t.Errorf("%s is not hidden", name)
		}
	}
	for _, name := range []string{"PATH", "HOME", "PWD", "LANG", "SHELL", "CFLAGS", "PATTERN"} {
		if secretName.MatchString(name) {
			t.Errorf("%s is hidden", name)
		}
	}
	t.Setenv("A_TOKEN", "abcdef")
	t.Setenv("B_TOKEN", "abcdefgh")
	t.Setenv("C_TOKEN", "on")
	var names []string
	for _, h := range (&wrapping{}).hidden() {
		if len(h.Name) == 7 {
			names = append(names, h.Name)
		}
	}
	if !slices.Equal(names, []string{"B_TOKEN", "A_TOKEN"}) {
		t.Errorf("%v", names)
	}
}
