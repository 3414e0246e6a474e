// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gitcli

import (
	"strings"
	"testing"

	"github.com/hallmark-sc/hallmark"
)

func TestCheckURL(t *testing.T) {
	for _, good := range []string{"https://git.example.org/o/n.git", "https://git.example.org:8443/g/s/n", "http://127.0.0.1:3000/o/n.git", "http://[::1]:3000/o/n", "http://localhost/o/n"} {
		if err := CheckURL(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{
		"", "git.example.org/o/n", "http://git.example.org/o/n", "http://127.0.0.1.example.org/o/n", "https://user:w0rd@git.example.org/o/n", "https://w0rd@git.example.org/o/n", "https://git.example.org/",
		"https://git.example.org/o/n?x=w0rd", "https://git.example.org/o/n#x", "ssh://git.example.org/o/n", "file:///o/n", "ext::sh -c id", "-oProxyCommand=x", "https://git.example.org/o/n\nx", "https://git.example.org/o n", "https:///o/n", "://w0rd",
	} {
		err := CheckURL(bad)
		if hallmark.KindOf(err) != hallmark.KindUsage {
			t.Errorf("%q: %v", bad, err)
		}
		if err != nil && strings.Contains(bad, "user:") && strings.Contains(err.Error(), "w0rd") {
			t.Errorf("%q: the error repeats the password: %v", bad, err)
		}
	}
}

// FuzzRejected: whatever git and the upstream say, it is read, and a reference that
// was refused for itself comes before those that were refused with it.
func FuzzRejected(f *testing.F) {
	f.Add("To https://h/o/n\n!\tabc:refs/heads/b\t[rejected] (atomic push failed)\n!\tabc:refs/heads/a\t[remote rejected] (pre-receive hook declined)\nDone\n")
	f.Add("!\t:refs/heads/a\t[rejected] (stale info)\n")
	f.Add("!\t\t")
	f.Fuzz(func(t *testing.T, text string) {
		ref, why := rejected(text)
		if ref == "" && why != "" && !strings.Contains(text, "!\t") {
			t.Errorf("%q refuses nothing, and was read as %q", text, why)
		}
	})
	if ref, why := rejected("!\tabc:refs/heads/b\t[rejected] (atomic push failed)\n!\tabc:refs/heads/a\t[remote rejected] (declined)\n"); ref != "refs/heads/a" || !strings.Contains(why, "declined") {
		f.Errorf("%s: %s", ref, why)
	}
}
