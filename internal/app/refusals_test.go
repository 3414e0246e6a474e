// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRefusals: so many are recorded and no more, and none is forgotten.
func TestRefusals(t *testing.T) {
	var r refusals
	at := time.Unix(1000, 0)
	recorded, told := 0, 0
	for range 100 {
		if left, ok := r.admit(at); ok {
			recorded, told = recorded+1, told+left
		}
	}
	if recorded != recordedRefusals || told != 0 {
		t.Errorf("%d recorded, %d told", recorded, told)
	}
	if left, ok := r.admit(at.Add(time.Minute)); !ok || left != 100-recordedRefusals {
		t.Errorf("a minute later: %d left out, %t", left, ok)
	}
	if left, ok := r.admit(at.Add(61 * time.Second)); !ok || left != 0 {
		t.Errorf("and again: %d left out, %t", left, ok)
	}
}

// TestRefusedCredential: a token that is none is recorded, without it; a request
// that shows none is not.
func TestRefusedCredential(t *testing.T) {
	g := newGated(t)
	const secret = "hlm_0123456789abcdef"
	r := httptest.NewRequest("GET", "/app.git/info/refs?service=git-upload-pack", nil)
	if _, err := (&sourceGate{g.s}).Authenticate(t.Context(), r); err == nil {
		t.Fatal("nobody is somebody")
	}
	read := func() string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(Layout{g.home}.Spool(), spoolFile))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if b := read(); b != "" {
		t.Errorf("a request without a credential: %s", b)
	}
	r.SetBasicAuth("alice", secret)
	if _, err := (&sourceGate{g.s}).Authenticate(t.Context(), r); err == nil {
		t.Fatal("a token that nobody was given")
	}
	b := read()
	if strings.Count(b, "\n") != 1 || !strings.Contains(b, `"what":"credential","address":"192.0.2.1"`) || !strings.Contains(b, `"code":"ACCESS_CREDENTIAL_REFUSED"`) || strings.Contains(b, secret) || strings.Contains(b, "alice") {
		t.Errorf("recorded: %s", b)
	}
}
