// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/hallmark-sc/hallmark"
)

// Object is one git object, whose bytes hash to its name. Of one that is larger
// than is read whole, Data is nil and Size says how large it is.
type Object struct {
	ID, Type string
	Size     int64
	Data     []byte
}

// Entry is one path that a commit has otherwise than a parent. Mode is that of
// git, "000000" for what is gone.
type Entry struct{ Commit, Mode, ID, Path string }

// Update is what a push asks of one reference. A name of zeros is none.
type Update struct{ Ref, Old, New string }

// Creates reports whether the reference would be new.
func (u Update) Creates() bool { return strings.Trim(u.Old, "0") == "" }

// Deletes reports whether the reference would be gone.
func (u Update) Deletes() bool { return strings.Trim(u.New, "0") == "" }

// Incoming is what a push brings, not yet in the store. Objects must give every
// object of the push, referred to or not, and each method must hash what it
// reads; what can't be read is an error. The bytes that Objects gives are good
// until fn returns.
type Incoming interface {
	Objects(ctx context.Context, fn func(Object) error) error
	Object(ctx context.Context, id string) (Object, error)
	Commits(ctx context.Context, from string, without []string) ([]string, error)
	Changes(ctx context.Context, commits []string, fn func(Entry) error) error
	Descends(ctx context.Context, commit, of string) (bool, error)
}

// PushConfig is what judging a push needs.
type PushConfig struct {
	Incoming Incoming
	Verify   func(signature, signed []byte, at time.Time) Verdict
	// Same reports whether an address of a commit is one of a principal's own.
	Same func(principal, address string) bool
	// Known lists commits whose history is in the store and was judged. It is asked
	// only where a reference is new, or shows a commit that did not come with the
	// push: a list of many references takes long. nil knows none.
	Known func(ctx context.Context) ([]string, error)
	// Every names references to which every commit is judged that is new to them,
	// known or not: what stands on another branch may be there by other rules.
	Every     map[string]bool
	Clock     func() time.Time
	Binaries  []hallmark.Digest // compiled code that may be in a tree
	MaxFile   int64             // bytes of one file; 0 is refused
	MaxReason int               // reasons given of one kind; 0 is refused
}

// PushedCommit is one commit of a push and who vouches for it.
type PushedCommit struct {
	Commit    string              `json:"commit"`
	Author    string              `json:"author"`    // as it claims
	Committer string              `json:"committer"` // as it claims
	Signer    *hallmark.Principal `json:"signer,omitempty"`
}

// PushFacts is what was seen of a push.
type PushFacts struct {
	Commits []PushedCommit
	Objects int
	Bytes   int64
	Paths   []string          // changed by the new commits, each once
	Tips    map[string]string // the commit that each reference would show
	Reasons []hallmark.Reason
}

// JudgePush looks at every commit and object of a push: signatures, authors,
// names, links, submodules, compiled code, size, and commits that no reference
// would show. It errs where something can't be read; that is no judgement.
func JudgePush(ctx context.Context, cfg PushConfig, updates []Update) (PushFacts, error) {
	j := &pushJudge{cfg: cfg, seen: map[string]bool{}, tags: map[string]bool{}, count: map[hallmark.Code]int{}, blobs: map[string][]int{}}
	if cfg.MaxFile <= 0 || cfg.MaxReason <= 0 {
		return j.facts, hallmark.Errorf(hallmark.KindInternal, "judging a push: no limit on files or reasons")
	}
	if err := j.tips(ctx, updates); err != nil {
		return j.facts, err
	}
	order, err := j.reachable(ctx, updates, false)
	if err != nil {
		return j.facts, err
	}
	shown := map[string]bool{}
	for _, id := range order {
		shown[id] = true
	}
	err = cfg.Incoming.Objects(ctx, func(o Object) error {
		j.facts.Objects++
		j.facts.Bytes += max(o.Size, int64(len(o.Data)))
		switch o.Type {
		case "commit":
			if !shown[o.ID] {
				known, err := j.knows(ctx)
				if err != nil {
					return err
				}
				if !known[o.ID] {
					j.add(hallmark.CodeCommitHidden, "push the reference that shows it, or leave it out", "commit %s is in the push and no reference would show it", o.ID)
				}
			}
			return j.commit(o)
		case "tag":
			if !j.tags[o.ID] {
				j.add(hallmark.CodeCommitHidden, "push the tag that shows it, or leave it out", "tag object %s is in the push and no reference would show it", o.ID)
			}
			j.tag(o)
		case "tree":
			j.tree(o)
		case "blob":
			j.blob(o)
		}
		return nil
	})
	if err != nil {
		return j.facts, fmt.Errorf("reading the push: %w", err)
	}
	if slices.ContainsFunc(order, func(id string) bool { return !j.seen[id] }) {
		// Commits of another branch, or that were stored before: what a branch shows
		// was judged.
		if order, err = j.reachable(ctx, updates, true); err != nil {
			return j.facts, err
		}
	}
	for _, id := range order {
		if j.seen[id] {
			continue // it came with the push and was judged
		}
		o, err := cfg.Incoming.Object(ctx, id)
		if err != nil {
			return j.facts, fmt.Errorf("reading commit %s: %w", id, err)
		}
		if err := j.commit(o); err != nil {
			return j.facts, err
		}
	}
	if err := j.changes(ctx, order); err != nil {
		return j.facts, err
	}
	at := map[string]int{}
	for i, id := range order {
		at[id] = i + 1
	}
	slices.SortFunc(j.facts.Commits, func(a, b PushedCommit) int { return at[a.Commit] - at[b.Commit] })
	return j.facts, nil
}

// tips finds the commit that each reference would show.
func (j *pushJudge) tips(ctx context.Context, updates []Update) error {
	j.facts.Tips = map[string]string{}
	for _, u := range updates {
		if u.Deletes() {
			continue
		}
		tip, err := j.tip(ctx, u)
		if hallmark.CodeOf(err) == hallmark.CodeSourceObjectInvalid && hallmark.KindOf(err) == hallmark.KindInvalid {
			j.add(hallmark.CodeSourceObjectInvalid, "let a branch show a commit, and a tag a commit by one tag object of its own name", "%s: %s", u.Ref, err)
			continue
		}
		if err != nil {
			return err
		}
		j.facts.Tips[u.Ref] = tip
	}
	return nil
}

// reachable lists the commits that the updates would show and that are new to
// their references: of a new reference, or of all, without those that are known.
func (j *pushJudge) reachable(ctx context.Context, updates []Update, known bool) ([]string, error) {
	seen := map[string]bool{}
	var order []string
	for _, u := range updates {
		tip, ok := j.facts.Tips[u.Ref]
		if !ok || u.Deletes() {
			continue
		}
		without := []string{u.Old}
		if u.Creates() || known && !j.cfg.Every[u.Ref] {
			all, err := j.knows(ctx)
			if err != nil {
				return nil, err
			}
			without = append(without, slices.Sorted(maps.Keys(all))...)
		}
		commits, err := j.cfg.Incoming.Commits(ctx, tip, without)
		if err != nil {
			return nil, fmt.Errorf("listing what %s would show: %w", u.Ref, err)
		}
		for _, c := range commits {
			if !seen[c] {
				seen[c] = true
				order = append(order, c)
			}
		}
	}
	return order, nil
}

func (j *pushJudge) knows(ctx context.Context) (map[string]bool, error) {
	if j.known != nil || j.cfg.Known == nil {
		return j.known, nil
	}
	ids, err := j.cfg.Known(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing what was judged before: %w", err)
	}
	j.known = map[string]bool{}
	for _, id := range ids {
		j.known[id] = true
	}
	return j.known, nil
}

type pushJudge struct {
	cfg   PushConfig
	facts PushFacts
	seen  map[string]bool
	tags  map[string]bool // that a reference would show
	count map[hallmark.Code]int
	known map[string]bool  // once asked for
	blobs map[string][]int // reasons about a blob, whose path is found out at last
}

func (j *pushJudge) add(code hallmark.Code, fix, format string, args ...any) {
	j.count[code]++
	switch n := j.count[code]; {
	case n == j.cfg.MaxReason+1:
		j.facts.Reasons = append(j.facts.Reasons, hallmark.Reason{Code: code, Check: "source", Message: "and more of the same kind", Fix: fix})
	case n <= j.cfg.MaxReason:
		j.facts.Reasons = append(j.facts.Reasons, hallmark.Reason{Code: code, Check: "source", Message: fmt.Sprintf(format, args...), Fix: fix})
	}
}

// maxTags bounds tags of tags.
const maxTags = 8

// tip follows tags to the commit that a reference would show. The first must
// bear the reference's name: under another it would pass for what it is not.
func (j *pushJudge) tip(ctx context.Context, u Update) (string, error) {
	id := u.New
	for depth := range maxTags {
		o, err := j.cfg.Incoming.Object(ctx, id)
		if err != nil {
			return "", fmt.Errorf("reading %s: %w", id, err)
		}
		switch o.Type {
		case "commit":
			return id, nil
		case "tag":
			line, _, _ := bytes.Cut(o.Data, []byte{'\n'})
			to, ok := strings.CutPrefix(string(line), "object ")
			if !ok || !isObjectName(to) {
				return "", hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceObjectInvalid, "tag object %s names nothing", id)
			}
			short, ofTag := strings.CutPrefix(u.Ref, "refs/tags/")
			if named := tagName(o.Data); depth == 0 && (!ofTag || named != short) {
				return "", hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceObjectInvalid, "tag object %s is named %.200q", id, named)
			}
			j.tags[id] = true
			j.tag(o) // also one that was in the store before
			id = to
		default:
			return "", hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceObjectInvalid, "%s is a %s; a reference shows a commit", id, o.Type)
		}
	}
	return "", hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceObjectInvalid, "tags of %s are nested too deeply", id)
}

// tagName is what a tag object says that it is named; "" when it is no tag.
func tagName(raw []byte) string {
	head, _, _ := bytes.Cut(raw, []byte("\n\n"))
	f := strings.SplitN(string(head), "\n", 4)
	if len(f) < 3 || !strings.HasPrefix(f[1], "type ") {
		return ""
	}
	name, _ := strings.CutPrefix(f[2], "tag ")
	return name
}

const signAs = "sign it as its author, with a key of your own: git commit --amend --no-edit --reset-author -S, or git rebase --exec for several"

// commit judges one commit by its raw bytes.
func (j *pushJudge) commit(o Object) error {
	if j.seen[o.ID] {
		return nil
	}
	j.seen[o.ID] = true
	c, err := ParseCommit(o.Data)
	if err != nil {
		j.add(hallmark.CodeSourceObjectInvalid, "make the commit again with git", "commit %s: %s", o.ID, err)
		return nil
	}
	if c.Encoding != "" && !readable(c.Encoding) {
		j.add(hallmark.CodeSourceEncoding, "write messages in UTF-8: git config --unset i18n.commitEncoding, and make the commit again", "commit %s says that its text is in %.40q, which reads otherwise to whoever decodes it", o.ID, c.Encoding)
	}
	p := PushedCommit{Commit: o.ID, Author: c.Author, Committer: c.Committer}
	defer func() { j.facts.Commits = append(j.facts.Commits, p) }()
	if c.Signature == nil {
		j.add(hallmark.CodeSourceUnsigned, signAs, "commit %s is not signed", o.ID)
		return nil
	}
	v := verify(Config{Verify: j.cfg.Verify, Clock: j.cfg.Clock}, c)
	if v.Code != "" {
		j.add(v.Code, fixOf(v.Code, signAs), "commit %s: %s", o.ID, v.Message)
		return nil
	}
	for _, who := range []struct {
		what, mail string
		code       hallmark.Code
	}{{"committer", Mail(c.Committer), hallmark.CodeSourceSignerNotAuthor}, {"author", Mail(c.Author), hallmark.CodeSourceAuthor}} {
		i := slices.IndexFunc(v.Principals, func(p hallmark.Principal) bool { return p.Name == who.mail || j.cfg.Same(p.Name, who.mail) })
		if i < 0 {
			j.add(who.code, signAs, "commit %s is signed with the key of %s, its %s is %q", o.ID, v.Principals[0].Name, who.what, who.mail)
			return nil
		}
		p.Signer = &v.Principals[i]
	}
	return nil
}

// tree judges the names of one tree.
func (j *pushJudge) tree(o Object) {
	const fix = "rename the file (git mv), and in older commits rewrite them"
	body, idLen := o.Data, len(o.ID)
	folded := map[string]string{}
	for len(body) > 0 {
		mode, rest, ok := bytes.Cut(body, []byte{' '})
		name, after, ok2 := bytes.Cut(rest, []byte{0})
		if !ok || !ok2 || len(after) < idLen/2 {
			j.add(hallmark.CodeSourceObjectInvalid, "make the commit again with git", "tree %s ends early", o.ID)
			return
		}
		body = after[idLen/2:]
		n := string(name)
		if why := DangerousName(n); why != "" {
			j.add(hallmark.CodeSourceName, fix, "file name %q %s", n, why)
		}
		fold := Fold(n)
		if other, twice := folded[fold]; twice {
			j.add(hallmark.CodeSourceName, fix, "file names %q and %q are one name where case or accents don't count", other, n)
		}
		folded[fold] = n
		if string(mode) == "160000" {
			j.add(hallmark.CodeSourceSubmodule, "put the code into the repository, or fetch it as a dependency", "%q is a submodule: its code would not be looked at", n)
		}
	}
}

// TreeNames are the names of a tree's entries, as far as it can be read.
func TreeNames(o Object) []string {
	var out []string
	for body := o.Data; len(body) > 0; {
		_, rest, ok := bytes.Cut(body, []byte{' '})
		name, after, ok2 := bytes.Cut(rest, []byte{0})
		if !ok || !ok2 || len(after) < len(o.ID)/2 {
			break
		}
		out = append(out, string(name))
		body = after[len(o.ID)/2:]
	}
	return out
}

// blob judges bytes that are nowhere named yet.
func (j *pushJudge) blob(o Object) {
	before := len(j.facts.Reasons)
	defer func() {
		for i := before; i < len(j.facts.Reasons); i++ {
			j.blobs[o.ID] = append(j.blobs[o.ID], i)
		}
	}()
	if size := max(o.Size, int64(len(o.Data))); size > j.cfg.MaxFile {
		j.add(hallmark.CodeSourceTooLarge, "keep large files in git LFS or a package", "object %s has %d bytes, more than %d", o.ID, size, j.cfg.MaxFile)
		return
	}
	if kind := MachineCode(o.Data); kind != "" && !slices.Contains(j.cfg.Binaries, hallmark.DigestOf(o.Data)) {
		j.add(hallmark.CodeSourceBinary, "let the build make it, or have its bytes approved: hallmark policy set source.binaries="+string(hallmark.DigestOf(o.Data)),
			"object %s is compiled code (%s), which nobody can review", o.ID, kind)
	}
}

// Place is where a push shows an object: at a path of the first commit that has
// it, or as a commit or tag itself.
type Place struct{ Commit, Path string }

// String is for people; an object that no commit shows has no place.
func (p Place) String() string {
	if p.Commit == "" {
		return "which no commit of the push shows"
	}
	return fmt.Sprintf("%.200q of commit %.12s", p.Path, p.Commit)
}

// Places finds where commits, the newest first, show objects.
func Places(ctx context.Context, in Incoming, commits []string, objects map[string]bool) (map[string]Place, error) {
	out := map[string]Place{}
	err := in.Changes(ctx, commits, func(e Entry) error {
		if objects[e.ID] {
			out[e.ID] = Place{e.Commit, e.Path}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("finding where objects are: %w", err)
	}
	return out, nil
}

// changes judges links, which mean something only at their path, and collects
// the paths.
func (j *pushJudge) changes(ctx context.Context, commits []string) error {
	paths := map[string]bool{}
	links := map[string][]string{}
	places := map[string]Place{}
	err := j.cfg.Incoming.Changes(ctx, commits, func(e Entry) error {
		paths[e.Path] = true
		if j.blobs[e.ID] != nil {
			places[e.ID] = Place{e.Commit, e.Path} // the last is the oldest
		}
		if e.Mode == "120000" {
			links[e.ID] = append(links[e.ID], e.Path)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("listing changed paths: %w", err)
	}
	for id, reasons := range j.blobs {
		for _, i := range reasons {
			j.facts.Reasons[i].Message += ": " + places[id].String()
		}
	}
	for p := range paths {
		j.facts.Paths = append(j.facts.Paths, p)
	}
	slices.Sort(j.facts.Paths)
	for id, at := range links {
		o, err := j.cfg.Incoming.Object(ctx, id)
		if err != nil {
			return fmt.Errorf("reading link %s: %w", id, err)
		}
		for _, p := range at {
			if !StaysInside(p, string(o.Data)) {
				j.add(hallmark.CodeSourceLinkEscapes, "let the link lead to a file of the repository, by a relative path", "symbolic link %q leads to %.200q, which is not in the tree", p, o.Data)
			}
		}
	}
	return nil
}

// DangerousName says what is wrong with the name of a file, or "".
func DangerousName(name string) string {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\\") {
		return "leaves the tree"
	}
	if len(name) > 255 {
		return "is longer than file systems take"
	}
	if !utf8.ValidString(name) {
		return "is not UTF-8"
	}
	if gitDirectory(name) {
		return "stands for a git directory"
	}
	if strings.HasPrefix(name, "-") {
		return "begins as an option of a program"
	}
	for _, r := range name {
		switch {
		case r < 0x20 || r == 0x7f || r >= 0x80 && r < 0xa0:
			return "has control characters"
		case r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0x200e || r == 0x200f || r == 0x061c:
			return "has characters that turn the direction of text"
		case unicode.Is(unicode.Cf, r) || r == 0x2028 || r == 0x2029 || r == 0xfeff:
			return "has invisible characters"
		case strings.ContainsRune("`|;<>\"", r):
			return "has characters that a shell takes for its own"
		}
	}
	if strings.Contains(name, "$(") || strings.Contains(name, "${") {
		return "has characters that a shell takes for its own"
	}
	return ""
}

// gitDirectory reports whether some file system takes a name for ".git".
func gitDirectory(name string) bool {
	flat := Fold(strings.TrimRight(strings.Map(func(r rune) rune {
		if unicode.Is(unicode.Cf, r) { // invisible, and ignored by some file systems
			return -1
		}
		return r
	}, name), ". "))
	base, _, _ := strings.Cut(flat, ":") // streams of NTFS
	base = strings.TrimRight(base, ". ")
	return base == ".git" || strings.HasPrefix(base, "git~")
}

// Fold returns a name as file systems compare it that ignore case and in which
// way accents are written.
func Fold(name string) string {
	return strings.ToLower(strings.ToUpper(norm.NFC.String(name)))
}

// StaysInside reports whether a link at p leads to a place in the tree and to no
// git directory, also through other links: ".." may only come first, where it climbs real
// directories.
func StaysInside(p, target string) bool {
	if target == "" || path.IsAbs(target) || strings.ContainsRune(target, 0) {
		return false
	}
	depth, down := strings.Count(p, "/"), false
	for part := range strings.SplitSeq(target, "/") {
		switch part {
		case "", ".":
		case "..":
			depth--
			if down || depth < 0 {
				return false
			}
		default:
			if gitDirectory(part) {
				return false
			}
			down = true
		}
	}
	return true
}
