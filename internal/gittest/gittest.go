// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package gittest makes git repositories with SSH-signed commits for tests and
// drills, without ssh-keygen and without anybody's git configuration.
package gittest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"
)

// Key is a signing key of a throwaway person.
type Key struct {
	Mail   string
	priv   ed25519.PrivateKey
	signer ssh.Signer
}

// NewKey makes a key.
func NewKey(mail string) (*Key, error) {
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return keyOf(priv, mail)
}

func keyOf(priv ed25519.PrivateKey, mail string) (*Key, error) {
	s, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		return nil, err
	}
	return &Key{Mail: mail, priv: priv, signer: s}, nil
}

// PrivatePEM is the key in OpenSSH's format.
func (k *Key) PrivatePEM() []byte {
	block, err := ssh.MarshalPrivateKey(k.priv, k.Mail)
	if err != nil {
		return nil
	}
	return pem.EncodeToMemory(block)
}

// ParseKey reads what PrivatePEM wrote.
func ParseKey(b []byte, mail string) (*Key, error) {
	raw, err := ssh.ParseRawPrivateKey(b)
	if err != nil {
		return nil, err
	}
	priv, ok := raw.(*ed25519.PrivateKey)
	if !ok {
		return nil, errors.New("not an Ed25519 key")
	}
	return keyOf(*priv, mail)
}

// AllowedSigner is the key's line in an allowed_signers file.
func (k *Key) AllowedSigner() string {
	return k.Mail + ` namespaces="git" ` + k.Authorized()
}

// Authorized is the key's line in an authorized_keys file.
func (k *Key) Authorized() string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k.signer.PublicKey())))
}

// Signed is a commit with the key's signature: headers that end in a newline, and
// the message after the empty line that begins it.
func (k *Key) Signed(headers, body string) ([]byte, error) {
	sig, err := sshsig.Sign(strings.NewReader(headers+body), k.signer, sshsig.HashSHA512, "git")
	if err != nil {
		return nil, err
	}
	armored := strings.TrimSpace(string(sshsig.Armor(sig)))
	return []byte(headers + "gpgsig " + strings.ReplaceAll(armored, "\n", "\n ") + "\n" + body), nil
}

// SignedTag is a tag object with the key's signature at its end.
func (k *Key) SignedTag(raw string) ([]byte, error) {
	sig, err := sshsig.Sign(strings.NewReader(raw), k.signer, sshsig.HashSHA512, "git")
	if err != nil {
		return nil, err
	}
	return append([]byte(raw), sshsig.Armor(sig)...), nil
}

// Options describe a commit; a nil Key leaves it unsigned.
type Options struct {
	Message, Name, Mail string
	Time                time.Time
	Key                 *Key
}

// CommitAll commits everything in dir, making the repository if there is none,
// and moves refs/heads/main. It returns the commit's name.
func CommitAll(dir string, o Options) (string, error) {
	git := func(stdin []byte, args ...string) (string, error) {
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "core.hooksPath=/dev/null"}, args...)...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null"}
		cmd.Stdin = bytes.NewReader(stdin)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("git %s: %w: %s", args[0], err, stderr.String())
		}
		return strings.TrimSpace(string(out)), nil
	}
	if _, err := os.Stat(filepath.Join(dir, ".git")); err != nil {
		if _, err := git(nil, "init", "-q", "-b", "main"); err != nil {
			return "", err
		}
	}
	if _, err := git(nil, "add", "-A"); err != nil {
		return "", err
	}
	tree, err := git(nil, "write-tree")
	if err != nil {
		return "", err
	}
	who := fmt.Sprintf("%s <%s> %d +0000", o.Name, o.Mail, o.Time.Unix())
	var head strings.Builder
	fmt.Fprintf(&head, "tree %s\n", tree)
	if parent, err := git(nil, "rev-parse", "--verify", "-q", "refs/heads/main"); err == nil {
		fmt.Fprintf(&head, "parent %s\n", parent)
	}
	fmt.Fprintf(&head, "author %s\ncommitter %s\n", who, who)
	body := "\n" + o.Message + "\n"
	commit := []byte(head.String() + body)
	if o.Key != nil {
		if commit, err = o.Key.Signed(head.String(), body); err != nil {
			return "", err
		}
	}
	id, err := git(commit, "hash-object", "-t", "commit", "-w", "--stdin")
	if err != nil {
		return "", err
	}
	_, err = git(nil, "update-ref", "refs/heads/main", id)
	return id, err
}
