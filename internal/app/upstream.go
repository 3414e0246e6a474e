// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/gate"
	"github.com/hallmark-sc/hallmark/internal/gitcli"
	"github.com/hallmark-sc/hallmark/internal/gitgate"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// UpstreamConfig names the repository at another forge that a repository of a home
// forwards to. The zero value is none.
type UpstreamConfig struct {
	URL       string
	User      string // "": one that every forge takes beside a token
	TokenFile string // "": the upstream asks for none
	Authority string // file of certificates to trust instead of the machine's; "": the machine's
}

// upstreamFile is what a home keeps of it, beside the credential.
type upstreamFile struct {
	URL string `json:"url"`
}

// Files of an upstream.
const (
	upstreamName       = "upstream.json"
	upstreamCredential = "credential"
	upstreamAuthority  = "authority.pem"
)

// upstreamDir is apart from the repository, which git processes are told to look
// at, and readable by its owner alone.
func (h *Home) upstreamDir(name string) string { return filepath.Join(h.Upstreams(), name+".git") }

// upstream is where a repository is forwarded to; nil is nowhere.
func (h *Home) upstream(name string) (*gitcli.Upstream, error) {
	dir := h.upstreamDir(name)
	b, err := readLimited(filepath.Join(dir, upstreamName), maxTrustFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var f upstreamFile
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err == nil {
		err = gitcli.CheckURL(f.URL)
	}
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading %s: %w", filepath.Join(dir, upstreamName), err)
	}
	up := &gitcli.Upstream{URL: f.URL}
	for file, to := range map[string]*string{upstreamCredential: &up.Credential, upstreamAuthority: &up.Authority} {
		if path := filepath.Join(dir, file); exists(path) {
			*to = path
		}
	}
	return up, nil
}

// putUpstream makes the files of an upstream in a directory of their own.
func putUpstream(dir string, cfg UpstreamConfig) (*gitcli.Upstream, error) {
	if err := gitcli.CheckURL(cfg.URL); err != nil {
		return nil, err
	}
	up := &gitcli.Upstream{URL: cfg.URL}
	files := map[string][]byte{}
	if cfg.TokenFile != "" {
		token, err := ReadToken(cfg.TokenFile)
		if err != nil {
			return nil, err
		}
		user := cmp.Or(cfg.User, "hallmark")
		if strings.ContainsFunc(user, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return nil, hallmark.Errorf(hallmark.KindUsage, "upstream user %.80q has spaces", user)
		}
		files[upstreamCredential] = []byte("username=" + user + "\npassword=" + token + "\n")
		up.Credential = filepath.Join(dir, upstreamCredential)
	}
	if cfg.Authority != "" {
		pem, err := readLimited(cfg.Authority, maxTrustFile)
		if err != nil {
			return nil, hallmark.Errorf(hallmark.KindUsage, "reading the upstream's authority: %w", err)
		}
		if !x509.NewCertPool().AppendCertsFromPEM(pem) {
			return nil, hallmark.Errorf(hallmark.KindUsage, "%s holds no certificate", cfg.Authority)
		}
		files[upstreamAuthority] = pem
		up.Authority = filepath.Join(dir, upstreamAuthority)
	}
	b, err := json.Marshal(upstreamFile{cfg.URL})
	if err != nil {
		return nil, err
	}
	files[upstreamName] = append(b, '\n')
	if err := durable.MakeDir(dir, 0o700); err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "making %s: %w", dir, err)
	}
	for _, name := range slices.Sorted(maps.Keys(files)) { // the one that makes it count comes last
		if err := writeDurable(filepath.Join(dir, name), files[name], 0o600); err != nil {
			return nil, err
		}
	}
	return up, nil
}

// ReadToken reads a token from a file that nobody else may read.
func ReadToken(path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", hallmark.Errorf(hallmark.KindUsage, "reading a token: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return "", hallmark.WithHint(hallmark.Errorf(hallmark.KindUsage, "the token in %s can be read by others", path), "chmod 600 "+path)
	}
	b, err := readLimited(path, 64<<10)
	if err != nil {
		return "", hallmark.Errorf(hallmark.KindUsage, "reading a token: %w", err)
	}
	token := string(bytes.TrimSpace(b))
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return "", hallmark.Errorf(hallmark.KindUsage, "%s holds no token: want one word", path)
	}
	return token, nil
}

// sameRefs wants an upstream to show what a repository begins with, and nothing
// else: what is there besides never passed the gate.
func sameRefs(ctx context.Context, up *gitcli.Upstream, want map[string]string) error {
	have, err := up.Refs(ctx)
	if err != nil {
		return err
	}
	if maps.Equal(have, want) {
		return nil
	}
	for _, ref := range slices.Sorted(maps.Keys(have)) {
		if have[ref] != want[ref] {
			err := hallmark.Coded(hallmark.KindDenied, hallmark.CodeUpstreamMoved, "%s shows %s at %s, and what is to begin here does not", up.URL, ref, have[ref])
			return hallmark.WithHint(err, "hallmark repository import NAME --upstream "+up.URL+", which looks at what is there first")
		}
	}
	return hallmark.Coded(hallmark.KindDenied, hallmark.CodeUpstreamMoved, "%s lacks %d references that are imported", up.URL, len(want)-len(have))
}

// prepareUpstream makes the files of an upstream apart, and looks whether it shows
// the same references; put then puts them where they count, before the repository
// can be seen. Without an upstream it does nothing.
func (h *Home) prepareUpstream(ctx context.Context, apart, name string, cfg UpstreamConfig, refs map[string]string) (put func() error, err error) {
	if cfg.URL == "" {
		if cfg != (UpstreamConfig{}) {
			return nil, hallmark.Errorf(hallmark.KindUsage, "a user, token or authority of an upstream, and no URL")
		}
		return func() error { return nil }, nil
	}
	files := filepath.Join(apart, "upstream")
	up, err := putUpstream(files, cfg)
	if err != nil {
		return nil, err
	}
	if err := sameRefs(ctx, up, refs); err != nil {
		return nil, err
	}
	return func() error {
		dir := h.upstreamDir(name)
		if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
			return hallmark.Errorf(hallmark.KindInvalid, "making %s: %w", dir, err)
		}
		if err := os.RemoveAll(dir); err != nil { // of a repository that was never shown
			return hallmark.Errorf(hallmark.KindInvalid, "removing %s: %w", dir, err)
		}
		if err := os.Rename(files, dir); err != nil {
			return hallmark.Errorf(hallmark.KindInvalid, "making %s: %w", dir, err)
		}
		return nil
	}, nil
}

// forward takes a push that is allowed to the upstream, out of quarantine. The
// transitions are logged first; then the upstream moves, if it still is where the
// log says; then git moves our references. The lock of each reference is held from
// before the log to the end of the push, so nobody else's transition comes between.
func (g *sourceGate) forward(ctx context.Context, p *gitgate.Push, c *considered, in *gitcli.Incoming, say func(string)) (hallmark.Decision, error) {
	up := c.upstream
	say("forwarding to " + up.URL)
	updates := slices.SortedFunc(slices.Values(p.Updates), func(a, b source.Update) int { return strings.Compare(a.Ref, b.Ref) })
	if why, err := g.nested(ctx, p, updates); err != nil || why != nil {
		return gate.Denied(reasonsOf(why)...), err
	}
	left, why := ahead(ctx, up, updates)
	if why != nil && !g.s.parts.ignores(*why) {
		return gate.Denied(*why), nil
	}
	settled := false
	defer func() {
		if !settled { // refused, or nobody knows: what was logged is settled at once
			g.settle(p, c)
		}
	}()
	for _, u := range updates {
		unlock, err := g.s.locks.lock(ctx, p.Repository, u.Ref)
		if err != nil {
			return hallmark.Decision{}, err
		}
		c.locked = append(c.locked, lockedRef{u.Ref, unlock})
		switch err := g.follows(ctx, c, u); {
		case hallmark.CodeOf(err) == hallmark.CodeRefBusy:
			return gate.Denied(reasonOf(err, "source")), nil
		case err != nil:
			return hallmark.Decision{}, err
		}
		// git has no lock yet: another may have moved it before ours was there.
		if is, err := gitcli.Value(ctx, p.Dir, u.Ref); err != nil {
			return hallmark.Decision{}, err
		} else if is != u.Old && !(u.Creates() && strings.Trim(is, "0") == "") {
			return gate.Denied(hallmark.Reason{Code: hallmark.CodeRefBusy, Check: "source", Message: fmt.Sprintf("%s moved to %s while this was pushed", u.Ref, is), Fix: "fetch, and push again"}), nil
		}
	}
	for _, u := range updates {
		if err := g.record(ctx, p, c, u); err != nil {
			return hallmark.Decision{}, err
		}
	}
	if err := g.s.send(ctx, up, in, left); err != nil {
		return gate.Denied(reasonOf(err, "source")), nil
	}
	settled = true
	return hallmark.Decision{Effect: hallmark.Allow}, nil
}

func reasonsOf(r *hallmark.Reason) []hallmark.Reason {
	if r == nil {
		return nil
	}
	return []hallmark.Reason{*r}
}

// reasonOf makes an error of an upstream a reason against what was asked.
func reasonOf(err error, check string) hallmark.Reason {
	return hallmark.Reason{Code: hallmark.CodeOf(err), Check: check, Message: err.Error(), Fix: hallmark.HintOf(err)}
}

// ahead asks the upstream where it is, and returns what has to be forwarded. Where
// it already shows what is pushed there is nothing to do: that was judged as well.
func ahead(ctx context.Context, up *gitcli.Upstream, updates []source.Update) ([]source.Update, *hallmark.Reason) {
	at, err := up.Refs(ctx)
	if err != nil {
		r := reasonOf(err, "source")
		return nil, &r
	}
	var left []source.Update
	var why *hallmark.Reason
	for _, u := range updates {
		switch is := cmp.Or(at[u.Ref], zeros); {
		case is == u.New || strings.Trim(is+u.New, "0") == "":
		case is == u.Old || strings.Trim(is+u.Old, "0") == "":
			left = append(left, u)
		default:
			why = &hallmark.Reason{Code: hallmark.CodeUpstreamMoved, Check: "source",
				Message: fmt.Sprintf("%s is at %s at the upstream %s, and the log says %s: it was moved round the gate", u.Ref, is, up.URL, orNone(u.Old)),
				Missing: "a transition in the log", Fix: "find out who pushed there; take it back there, or push exactly that revision here, where it is judged. hallmark source verify shows what differs"}
			left = append(left, source.Update{Ref: u.Ref, Old: is, New: u.New}) // for who lets the reason count for nothing
		}
	}
	return left, why
}

// send forwards. Where the answer was lost the upstream is asked what happened.
func (s *Server) send(ctx context.Context, up *gitcli.Upstream, in *gitcli.Incoming, updates []source.Update) error {
	if len(updates) == 0 {
		return nil
	}
	err := up.Forward(ctx, in, updates)
	if err == nil {
		return nil
	}
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	at, asked := up.Refs(after)
	if asked == nil && !slices.ContainsFunc(updates, func(u source.Update) bool {
		is := cmp.Or(at[u.Ref], zeros)
		return is != u.New && strings.Trim(is+u.New, "0") != ""
	}) {
		s.log.Warn("a push reached the upstream although its answer did not come", "upstream", up.URL, "error", err.Error())
		return nil
	}
	return err
}

// nested finds references of which one is a directory of another, which git would
// refuse after the upstream took them.
func (g *sourceGate) nested(ctx context.Context, p *gitgate.Push, updates []source.Update) (*hallmark.Reason, error) {
	if !slices.ContainsFunc(updates, source.Update.Creates) {
		return nil, nil
	}
	refs, err := gitcli.Refs(ctx, p.Dir)
	if err != nil {
		return nil, err
	}
	for _, u := range updates {
		if !u.Creates() {
			continue
		}
		for other := range refs {
			if strings.HasPrefix(other, u.Ref+"/") || strings.HasPrefix(u.Ref, other+"/") {
				return &hallmark.Reason{Code: hallmark.CodeRefName, Check: "access", Message: u.Ref + " and " + other + " can't both be there", Fix: "use another name"}, nil
			}
		}
		refs[u.Ref] = u.New
	}
	return nil, nil
}

// arrived settles a transition of a reference that has an upstream: what happened
// is what the upstream shows. It reports whether ours was moved there as well.
func (s *Server) arrived(ctx context.Context, up *gitcli.Upstream, dir, ref string, last lastTransition, is string) (bool, error) {
	refs, err := up.Refs(ctx)
	if err != nil {
		return false, err
	}
	at := cmp.Or(refs[ref], zeros)
	if at != last.New && strings.Trim(at+last.New, "0") != "" {
		return false, nil
	}
	if last.New != zeros {
		if has, err := gitcli.Shows(ctx, dir, last.New); err != nil {
			return false, err
		} else if !has { // killed before git took the objects out of quarantine
			if err := up.Fetch(ctx, dir, ref, last.New); err != nil {
				return false, err
			}
		}
	}
	return true, gitcli.Move(ctx, dir, ref, last.New, is)
}

// catchUp settles a transition of which nobody knows yet how it ended, and returns
// the newest one. That it can't is a reason against whatever needs to know.
func (s *Server) catchUp(ctx context.Context, repository, ref string) (lastTransition, *hallmark.Reason, error) {
	unlock, err := s.locks.lock(ctx, repository, ref)
	if err != nil {
		return lastTransition{}, nil, err
	}
	defer unlock()
	err = s.settle(ctx, repository, ref, "")
	switch code := hallmark.CodeOf(err); {
	case code == hallmark.CodeUpstreamUnreachable || code == hallmark.CodeUpstreamMoved || code == hallmark.CodeRefBusy:
		why := reasonOf(err, "source")
		return lastTransition{}, &why, nil
	case err != nil && code != hallmark.CodeRefOutsideLog:
		return lastTransition{}, nil, err
	}
	last, err := s.home.lastTransition(ctx, s.uri(repository), ref)
	return last, nil, err
}

func (s *Server) hasUpstream(repository string) bool {
	return exists(filepath.Join(s.home.upstreamDir(repository), upstreamName))
}
