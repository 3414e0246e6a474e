// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// pinScript answers every question of GnuPG's agent.
const pinScript = `#!/bin/sh
echo OK
while read -r line; do
  case $line in
  GETPIN*) echo "D x" ;;
  BYE*) echo OK; exit ;;
  esac
  echo OK
done
`

// gnupg NAME MAIL makes an OpenPGP key, and a certificate with an authority, for
// somebody who signs with git: NAME.asc, NAME.pgp (as policy set wants it) and
// NAME.pgp.gitconfig; NAME.cert (as access principal wants it), NAME.x509 and
// NAME.x509.gitconfig. GNUPGHOME is set.
func cmdGnuPG(ts *testscript.TestScript, _ bool, args []string) {
	name, mail := args[0], args[1]
	for program, pkg := range map[string]string{"gpg": "gnupg", "gpgsm": "gpgsm", "openssl": "openssl"} {
		if _, err := exec.LookPath(program); err != nil {
			ts.Fatalf("%s is missing: apt-get install %s", program, pkg)
		}
	}
	home, err := os.MkdirTemp("/tmp", "hm-gpg-") // the path of its socket must be short
	ts.Check(err)
	env := append(os.Environ(), "GNUPGHOME="+home)
	run := func(stdin string, argv ...string) string {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Dir, cmd.Env, cmd.Stdin = home, env, strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if err != nil {
			ts.Fatalf("%v: %v: %s", argv, err, out)
		}
		return string(out)
	}
	ts.Defer(func() {
		cmd := exec.Command("gpgconf", "--kill", "all")
		cmd.Env = env
		cmd.Run()
		os.RemoveAll(home)
	})
	write := func(path, text string) { ts.Check(os.WriteFile(path, []byte(text), 0o700)) }
	write(filepath.Join(home, "pin"), pinScript)
	write(filepath.Join(home, "gpg-agent.conf"), "pinentry-program "+filepath.Join(home, "pin")+"\n")
	write(filepath.Join(home, "gpgsm.conf"), "disable-crl-checks\n")
	run("", "gpg", "--batch", "--passphrase", "", "--quick-generate-key", mail, "rsa2048", "sign", "0")
	print := ""
	for line := range strings.SplitSeq(run("", "gpg", "--with-colons", "--list-keys", mail), "\n") {
		if f := strings.Split(line, ":"); f[0] == "fpr" {
			print = f[9]
		}
	}
	armored := run("", "gpg", "--armor", "--export", print)
	write(ts.MkAbs(name+".asc"), armored)
	write(ts.MkAbs(name+".pgp"), mail+" "+print+"\n"+armored)

	run("", "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=CA", "-days", "2", "-addext", "keyUsage=critical,keyCertSign")
	run("", "openssl", "req", "-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-out", "csr", "-subj", "/CN="+name)
	write(filepath.Join(home, "ext"), "basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=emailProtection\nsubjectAltName=email:"+mail+"\n")
	run("", "openssl", "x509", "-req", "-in", "csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-extfile", "ext", "-out", "cert.pem")
	run("", "openssl", "pkcs12", "-export", "-inkey", "key", "-in", "cert.pem", "-out", "p12", "-passout", "pass:x", "-legacy", "-keypbe", "PBE-SHA1-3DES", "-certpbe", "PBE-SHA1-3DES", "-macalg", "sha1")
	run("", "gpgsm", "--batch", "--import", "ca.pem")
	// Its agent asks for the pin through a program; on a busy machine it was once
	// taken for a wrong one.
	for try := 1; ; try++ {
		cmd := exec.Command("gpgsm", "--batch", "--import", "p12")
		cmd.Dir, cmd.Env = home, env
		out, err := cmd.CombinedOutput()
		if err == nil {
			break
		}
		if try == 3 {
			ts.Fatalf("gpgsm --import: %v: %s", err, out)
		}
	}
	_, sha1, _ := strings.Cut(strings.TrimSpace(run("", "openssl", "x509", "-in", "ca.pem", "-noout", "-fingerprint", "-sha1")), "=")
	_, sha256, _ := strings.Cut(strings.TrimSpace(run("", "openssl", "x509", "-in", "ca.pem", "-noout", "-fingerprint", "-sha256")), "=")
	write(filepath.Join(home, "trustlist.txt"), sha1+" S relax\n")
	run("", "gpgconf", "--kill", "all")
	ca := run("", "cat", "ca.pem")
	write(ts.MkAbs(name+".cert"), "email:"+mail+"\n"+ca)
	write(ts.MkAbs(name+".x509"), mail+" email:"+mail+" sha256:"+strings.ToLower(strings.ReplaceAll(sha256, ":", ""))+"\n"+ca)
	for format, key := range map[string]string{"openpgp": print, "x509": mail} {
		write(ts.MkAbs(name+"."+format+".gitconfig"), "[user]\n\tname = "+name+"\n\temail = "+mail+"\n\tsigningkey = "+key+
			"\n[gpg]\n\tformat = "+format+"\n[commit]\n\tgpgsign = true\n[init]\n\tdefaultBranch = main\n[advice]\n\tdetachedHead = false\n")
	}
	ts.Setenv("GNUPGHOME", home)
}
