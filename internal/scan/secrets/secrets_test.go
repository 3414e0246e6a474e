// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
)

// Secrets are put together at run time, so that no file holds one.
func token() string     { return "ghp_" + "9jX2kQv7mB4nR8sT" + "1wY6zA3cE5gH0dLpUfVo" }
func accessKey() string { return "AKIA" + "Q3EGVWXZR5TBLMNK" }

func newTestDetector(t testing.TB) *detector {
	t.Helper()
	d, err := newDetector(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// strongest is the highest confidence that a scan has in its findings, 0 without
// any. No finding may show the secret.
func strongest(t testing.TB, d *detector, o Object, secret string) hallmark.Confidence {
	t.Helper()
	findings, missed := d.object(o)
	if len(missed) > 0 {
		t.Errorf("missed %v", missed)
	}
	var best hallmark.Confidence
	for _, f := range findings {
		best = max(best, f.Confidence)
		if strings.Contains(f.Message+f.Fingerprint, secret) {
			t.Errorf("finding %+v shows the secret", f)
		}
	}
	return best
}

// TestEveryEncodingIsRead plants one token in many forms of text.
func TestEveryEncodingIsRead(t *testing.T) {
	d := newTestDetector(t)
	text := "первая строка\nname = 1\ntoken = \"" + token() + "\"\nlast\n"
	var le, be, le32, be32 []byte
	for _, u := range utf16.Encode([]rune(text)) {
		le, be = binary.LittleEndian.AppendUint16(le, u), binary.BigEndian.AppendUint16(be, u)
	}
	for _, r := range text {
		le32, be32 = binary.LittleEndian.AppendUint32(le32, uint32(r)), binary.BigEndian.AppendUint32(be32, uint32(r))
	}
	bare := be[bytes.Index(be, []byte{0, 'g', 0, 'h'}):]
	bare = bare[:2*len(token())] // ends with the token
	for name, c := range map[string]struct {
		data []byte
		line int
	}{
		"UTF-8":                       {[]byte(text), 3},
		"UTF-16 LE":                   {le, 3},
		"UTF-16 BE":                   {be, 3},
		"UTF-16 LE with mark":         {append([]byte{0xff, 0xfe}, le...), 3},
		"UTF-16 BE with mark":         {append([]byte{0xfe, 0xff}, be...), 3},
		"UTF-32 LE":                   {le32, 3},
		"UTF-32 BE":                   {be32, 3},
		"UTF-16 in the middle, odd":   {append(bytes.Repeat([]byte{0xc3}, 77), le...), 3},
		"UTF-16 to the last byte":     {bare, 1},
		"a false mark before plain":   {append([]byte{0xff, 0xfe}, text...), 3},
		"plain text after zero bytes": {append(make([]byte, 64), text...), 3},
	} {
		findings, missed := d.object(Object{ID: "o", Type: "blob", Path: "f", Data: c.data})
		if len(findings) != 1 || len(missed) != 0 || findings[0].Line != c.line || findings[0].Confidence != hallmark.ConfidenceHigh {
			t.Errorf("%s: findings %+v, missed %v", name, findings, missed)
		}
	}
}

func TestExampleValues(t *testing.T) {
	for s, want := range map[string]bool{
		"AKIAIOSFODNN7" + "EXAMPLE":                           true,
		"ghp_" + strings.Repeat("0", 36):                      true,
		"ghp_" + "1234567890" + "abcdefghijklmnopqrstuvwxyz":  true,
		"ghp_" + strings.Repeat("x", 36):                      true,
		token():                                               false,
		"ghp_" + "9jX2kQv7mB4n000000" + "1wY6zA3cE5gH0dLpUf":  false,
		"ghp_" + "9jX2kQv123456789" + "1wY6zA3cE5gH0dLpUfVo":  false,
		"123456789" + ":" + "AAG" + strings.Repeat("k7Qz", 8): false, // an account number comes first
		strings.Repeat("k7Qz3", 50) + "example" + "\n":        false, // a block of key material
		"": true,
	} {
		if got := exampleValue(s); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}

// TestTokenWithZerosCounts: chance may put six zeros into a true token.
func TestTokenWithZerosCounts(t *testing.T) {
	s := "ghp_" + "9jX2kQv7mB4n000000" + "1wY6zA3cE5gH0dLpUf"
	if got := strongest(t, newTestDetector(t), Object{ID: "o", Type: "blob", Path: "f", Data: []byte("token = \"" + s + "\"\n")}, s); got != hallmark.ConfidenceHigh {
		t.Errorf("confidence %v", got)
	}
}

// sshsig makes the bytes of an SSH signature whose last field is given.
func sshsig(namespace string, signature []byte) []byte {
	b := []byte("SSHSIG\x00\x00\x00\x01")
	for _, f := range [][]byte{[]byte("key"), []byte(namespace), nil, []byte("sha512"), signature} {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(f))), f...)
	}
	return b
}

func armored(label, headers string, b []byte) string {
	var out strings.Builder
	out.WriteString("-----BEGIN " + label + "-----\n" + headers)
	for text := base64.StdEncoding.EncodeToString(b); text != ""; {
		n := min(70, len(text))
		out.WriteString(text[:n] + "\n")
		text = text[n:]
	}
	return out.String() + "-----END " + label + "-----"
}

func commitWith(headers string) Object {
	return Object{ID: "c", Type: "commit", Data: []byte("tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\nauthor A <a@example.org> 1 +0000\ncommitter A <a@example.org> 1 +0000\n" + headers + "\n\nA message\n")}
}

// header writes a block as the value of a commit's header.
func header(name, block string) string { return name + " " + strings.ReplaceAll(block, "\n", "\n ") }

// lookalike is base64 that reads like an access key where it stands in a
// signature.
func lookalike(t *testing.T) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString("AAA/" + accessKey() + "/AAA")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSignaturesAreRead: what is hidden in the signature of an old commit or tag
// is found, and the random text of a true signature does not count.
func TestSignaturesAreRead(t *testing.T) {
	d := newTestDetector(t)
	// Padded until the lookalike stands for itself on one line.
	noise, sig := append(lookalike(t), 0), []byte(nil)
	for pad := 0; !strings.Contains(armored("SSH SIGNATURE", "", sig), "/"+accessKey()+"/"); pad++ {
		if sig = sshsig("git"+strings.Repeat("s", pad), noise); pad > 300 {
			t.Fatal("the signature does not look like a key")
		}
	}
	pgp := func(body []byte) []byte { return append([]byte{0x88, byte(len(body))}, body...) }
	high, low := hallmark.ConfidenceHigh, hallmark.ConfidenceLow
	for name, c := range map[string]struct {
		o      Object
		secret string
		want   hallmark.Confidence
	}{
		"clean":                   {commitWith(header("gpgsig", armored("SSH SIGNATURE", "", sshsig("git", []byte("s"))))), token(), 0},
		"lookalike":               {commitWith(header("gpgsig", armored("SSH SIGNATURE", "", sig))), accessKey(), low},
		"lookalike in a tag":      {Object{ID: "t", Type: "tag", Data: []byte("object x\ntype commit\ntag v1\n\nText\n" + armored("SSH SIGNATURE", "", sig) + "\n")}, accessKey(), low},
		"token for a signature":   {commitWith("gpgsig " + token()), token(), high},
		"line of the block":       {commitWith(header("gpgsig", armored("SSH SIGNATURE", token()+"\n", sig))), token(), high},
		"header of the armor":     {commitWith(header("gpgsig", armored("PGP SIGNATURE", "Comment: "+token()+"\n\n", pgp([]byte("random"))))), token(), high},
		"namespace, decoded":      {commitWith(header("gpgsig", armored("SSH SIGNATURE", "", sshsig("git "+token(), []byte("s"))))), token(), high},
		"wide and decoded":        {commitWith(header("gpgsig", armored("SSH SIGNATURE", "", sshsig(strings.Join(strings.Split(" "+token()+" ", ""), "\x00"), []byte("s"))))), token(), high},
		"bytes of PGP, decoded":   {commitWith(header("gpgsig-sha256", armored("PGP SIGNATURE", "\n", pgp([]byte("n "+token()+" n"))))), token(), high},
		"no signature in a block": {commitWith(header("gpgsig", "-----BEGIN SSH SIGNATURE-----\n"+accessKey()+"\n-----END SSH SIGNATURE-----")), accessKey(), high},
		"after the signature":     {commitWith(header("gpgsig", armored("SSH SIGNATURE", "", append(sig, []byte(" "+token()+" ")...)))), token(), high},
		"no end":                  {commitWith(header("gpgsig", "-----BEGIN PGP SIGNATURE-----\n\n"+accessKey())), accessKey(), high},
		"tag in a merge":          {commitWith(header("mergetag", "object x\ntype commit\n\n"+token()+"\n"+armored("SSH SIGNATURE", "", sig))), token(), high},
		"message":                 {commitWith("x y\n\n" + token()), token(), high},
	} {
		if got := strongest(t, d, c.o, c.secret); got != c.want {
			t.Errorf("%s: confidence %v, want %v", name, got, c.want)
		}
	}
}

// TestRandomSignaturesDoNotCount scans signatures of random bytes.
func TestRandomSignaturesDoNotCount(t *testing.T) {
	d := newTestDetector(t)
	for range 300 {
		r := make([]byte, 400) // as long as RSA's
		rand.Read(r)
		o := commitWith(header("gpgsig", armored("SSH SIGNATURE", "", sshsig("git", r))))
		if got := strongest(t, d, o, token()); got > hallmark.ConfidenceLow {
			t.Fatalf("confidence %v in %s", got, o.Data)
		}
	}
}

// TestApartKeepsEverything: each line is in one of the pieces.
func TestApartKeepsEverything(t *testing.T) {
	sig := armored("SSH SIGNATURE", "", sshsig("git", bytes.Repeat([]byte{9}, 99)))
	data := "a\ngpgsig " + strings.ReplaceAll(sig, "\n", "\n ") + "\n\nmessage\n" + sig + "\nend\n-----BEGIN PGP SIGNATURE-----\nx"
	pieces := apart([]byte(data))
	var got []string
	for _, p := range pieces {
		if !strings.Contains(p.text, "SSHSIG\x00") && !strings.HasPrefix(p.text, "SSHSIG") {
			got = append(got, p.text)
		}
	}
	all := strings.Join(got, "\n")
	for line := range strings.Lines(data) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "-----END") && !strings.Contains(all, line) {
			t.Errorf("line %q is in no piece", line)
		}
	}
	if d := cmp.Diff(true, pieces[len(pieces)-1].noise); d != "" || len(pieces) < 4 {
		t.Errorf("%d pieces %s", len(pieces), d)
	}
}

func FuzzApart(f *testing.F) {
	f.Add([]byte("gpgsig " + armored("SSH SIGNATURE", "", sshsig("git", []byte("x")))))
	f.Add([]byte(armored("PGP SIGNATURE", "Version: 1\n\n", []byte{0x88, 1, 2, 0xc2, 1, 3, 0x89, 0, 1, 4})))
	f.Add([]byte(armored("SIGNED MESSAGE", "", []byte{0x30, 0x80, 1, 0, 0})))
	f.Add([]byte("a\x00b\x00c\x00d\x00e\x00f\x00g\x00h\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var all strings.Builder
		for _, p := range apart(b) {
			all.WriteString(p.text + "\n")
		}
		for line := range bytes.Lines(b) {
			line = bytes.TrimSpace(line)
			// The frame of a block and the check sum of PGP hold nothing.
			if !bytes.HasPrefix(line, []byte("-----END ")) && !armorSum.Match(line) && !strings.Contains(all.String(), string(line)) {
				t.Fatalf("line %q is in no piece", line)
			}
		}
		exampleValue(string(b))
	})
}
