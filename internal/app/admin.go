// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/conformance"
	"github.com/hallmark-sc/hallmark/internal/identity"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/scan/vuln"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/internal/sqlstore"
	"github.com/hallmark-sc/hallmark/internal/trace"
	"github.com/hallmark-sc/hallmark/internal/translog"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// PipelineSchema is the JSON Schema of a pipeline definition.
func PipelineSchema() []byte { return build.Schema() }

// StarterPipeline writes a first pipeline definition for the project in dir. An
// existing one is left alone.
func StarterPipeline(dir string) (path string, created bool, err error) {
	path = filepath.Join(dir, filepath.FromSlash(pipeline.PipelineFile))
	if _, err := os.Lstat(path); err == nil {
		return path, false, nil
	}
	b, err := build.Starter(os.DirFS(dir))
	if err != nil {
		return path, false, err
	}
	if err := writeDurable(path, b, 0o644); err != nil {
		return path, false, hallmark.Errorf(hallmark.KindInvalid, "writing %s: %w", path, err)
	}
	return path, true, nil
}

// SyncAdvisories takes an OSV export into the home.
func SyncAdvisories(_ context.Context, home, source string) ([]vuln.Summary, error) {
	if err := checkHome(home); err != nil {
		return nil, err
	}
	return vuln.Sync(Layout{home}.Advisories(), source)
}

// PolicyState is the policy of a home, for people.
type PolicyState struct {
	Version    int // 0 when none is in force yet
	Digest     hallmark.Digest
	Parameters []KeyValue
	Signers    []string   // lines of the allowed signers
	Build      []KeyValue // rules of builds by field; none: nothing may be built
	SignedBy   []string   // the holders of the policy keys that signed it
	Pending    *Proposal  // what waits for signatures; nil when nothing does
	Replaced   *Proposal  // what waited before and was given up
	Invalid    string     // why what lies there can't be signed
}

// KeyValue is one parameter.
type KeyValue struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// PolicyShow reads the verified policy, and what waits for signatures.
func PolicyShow(ctx context.Context, home string) (PolicyState, error) {
	h, err := openRoots(home)
	if err != nil {
		return PolicyState{}, err
	}
	defer h.Close()
	var s PolicyState
	if err := h.readPolicy(); err == nil {
		s.Version, s.Digest = h.policy.Version(), h.policy.Digest()
		for _, p := range policy.Table() {
			s.Parameters = append(s.Parameters, KeyValue{p.Key, h.document.Value(p.Key)})
		}
		rules := h.document.Build.Fields()
		for _, field := range slices.Sorted(maps.Keys(rules)) {
			s.Build = append(s.Build, KeyValue{field, rules[field]})
		}
		s.Signers = append([]string{}, strings.FieldsFunc(h.document.AllowedSigners, func(r rune) bool { return r == '\n' })...)
		for i, b := range lines(h.policyLines) {
			st, err := h.verifier.Verify(b)
			if err != nil {
				return s, fmt.Errorf("verifying signature %d of the policy: %w", i+1, err)
			}
			s.SignedBy = append(s.SignedBy, strings.TrimPrefix(st.Signer(), policySigner))
		}
	} else if hallmark.CodeOf(err) != hallmark.CodeGenesisUnsigned {
		return s, err
	}
	s.Pending, err = h.proposal(ctx)
	if hallmark.CodeOf(err) == hallmark.CodePolicyProposal {
		s.Invalid, err = err.Error(), nil
	}
	return s, err
}

// ReadSigners reads an OpenSSH allowed_signers file as a change of the policy.
func ReadSigners(path string) ([2]string, error) {
	text, err := readLimited(path, maxTrustFile)
	if err != nil {
		return [2]string{}, hallmark.Errorf(hallmark.KindInvalid, "reading allowed signers: %w", err)
	}
	if _, err := identity.ParseAllowedSigners(path, text); err != nil {
		return [2]string{}, err
	}
	return [2]string{policy.AllowedSigners, string(text)}, nil
}

// PolicySet changes parameters. A single operator's home signs the next version;
// administrators get it as a proposal.
func PolicySet(ctx context.Context, home string, pass []byte, changes [][2]string) (PolicyState, error) {
	if err := checkHome(home); err != nil {
		return PolicyState{}, err
	}
	unlock, err := lockPolicy(ctx, Layout{home})
	if err != nil {
		return PolicyState{}, err
	}
	defer unlock()
	h, err := readHome(home)
	if err != nil {
		return PolicyState{}, err
	}
	defer h.Close()
	if err := h.settlePending(ctx); err != nil {
		return PolicyState{}, err
	}
	if h.id.Mode == verify.ModeThreshold {
		next, err := h.document.Set(changes, now().Truncate(time.Second))
		if err != nil {
			return PolicyState{}, err
		}
		if err := h.factorsFit(next); err != nil {
			return PolicyState{}, err
		}
		doc, err := next.Encode()
		if err != nil {
			return PolicyState{}, err
		}
		return h.propose(ctx, doc)
	}
	if err := h.loadKeys(pass); err != nil {
		return PolicyState{}, err
	}
	doc, bundles, err := h.nextPolicy(ctx, changes)
	if err != nil {
		return PolicyState{}, err
	}
	if err := h.adoptPolicy(doc, bundles); err != nil {
		return PolicyState{}, err
	}
	return PolicyState{Version: h.document.Version + 1, Digest: hallmark.DigestOf(doc)}, nil
}

// nextPolicy makes, signs and checks the next version, which is not in force yet.
func (h *Home) nextPolicy(ctx context.Context, changes [][2]string) (doc, bundles []byte, err error) {
	next, err := h.document.Set(changes, now().Truncate(time.Second))
	if err != nil {
		return nil, nil, err
	}
	if err := h.factorsFit(next); err != nil {
		return nil, nil, err
	}
	doc, err = next.Encode()
	if err != nil {
		return nil, nil, err
	}
	signer := newSigner(h.Layout, h.id, h.keys, h.stores)
	defer signer.close()
	st, err := attest.PolicyStatement(hallmark.DigestOf(doc), next.Version, next.Previous)
	if err != nil {
		return nil, nil, err
	}
	if _, err := h.stores.blobs.Put(ctx, doc); err != nil {
		return nil, nil, fmt.Errorf("keeping the policy: %w", err)
	}
	signed, err := signer.sign(ctx, sign.Policy, st, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("signing the policy: %w", err)
	}
	bundles = append(signed.JSON, '\n')
	if err := h.checkPolicy(doc, bundles); err != nil {
		return nil, nil, fmt.Errorf("verifying the new policy: %w", err)
	}
	return doc, bundles, nil
}

func (h *Home) reader() (*translog.Reader, error) {
	key, err := h.verifier.Roots().Logs[0].Key()
	if err != nil {
		return nil, err
	}
	return translog.OpenReader(h.Log(), h.id.origin(), key)
}

// LogCheckpoint returns the newest published checkpoint.
func LogCheckpoint(ctx context.Context, home string) ([]byte, error) {
	h, err := readHome(home)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	r, err := h.reader()
	if err != nil {
		return nil, err
	}
	return r.Checkpoint(ctx)
}

// LogProve returns an entry with its inclusion proof, as Rekor writes it.
func LogProve(ctx context.Context, home string, index int64, statement hallmark.Digest) ([]byte, error) {
	h, err := readHome(home)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	if index < 0 {
		at, ok, err := h.stores.index.LeafOf(ctx, statement)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, hallmark.Errorf(hallmark.KindNotFound, "statement %s is not in the log", statement)
		}
		return h.prove(ctx, at)
	}
	return h.prove(ctx, uint64(index))
}

func (h *Home) prove(ctx context.Context, index uint64) ([]byte, error) {
	r, err := h.reader()
	if err != nil {
		return nil, err
	}
	return r.ProveJSON(ctx, index)
}

// FsckReport is what fsck found and did.
type FsckReport struct {
	translog.Report
	Unindexed int // entries that the index forgot: no harm, and mended by rebuilding
	Rebuilt   bool
}

// LogFsck checks the log against everything that is kept beside it, and rebuilds
// the index and the policy in force when asked. What is wrong with the index
// alone is mended by that.
func LogFsck(ctx context.Context, home string, rebuild bool) (FsckReport, error) {
	h, err := openRoots(home) // a policy that can't be read is a finding, and mended
	if err != nil {
		return FsckReport{}, err
	}
	defer h.Close()
	// Whoever verified a policy has seen a checkpoint that the log must have grown
	// from. What can't be read of it is found below.
	_ = h.readPolicy()
	r, err := h.reader()
	if err != nil {
		return FsckReport{}, err
	}
	known, err := knownHead(h.Layout, h.id)
	if err != nil {
		return FsckReport{}, err
	}
	rep, err := r.Fsck(ctx, translog.NewFileGuard(guardPath(h.Layout, h.id)), known, h.stores.blobs)
	if err != nil {
		return FsckReport{}, fmt.Errorf("checking the log: %w", err)
	}
	out := FsckReport{Report: rep}
	out.Problems = append([]translog.Problem{}, rep.Problems...) // none is [] to a script
	if len(rep.Problems) > 0 {                                   // a log that is wrong tells nothing about the index
		return out, nil
	}
	if rebuild {
		bad, err := h.rebuild(ctx, r, rep.Entries)
		if err != nil {
			return out, err
		}
		out.Problems = append(out.Problems, bad...)
		if err := h.restorePolicy(ctx); err != nil {
			return out, fmt.Errorf("restoring the policy: %w", err)
		}
		out.Rebuilt = true
	}
	forgotten, invented, err := r.CheckIndex(ctx, rep.Entries, h.stores.index)
	if err != nil {
		return out, fmt.Errorf("checking the index: %w", err)
	}
	out.Problems, out.Unindexed = append(out.Problems, invented...), forgotten
	out.Problems = append(out.Problems, h.policyProblems(ctx, r, rep.Entries, forgotten == 0 && len(invented) == 0)...)
	return out, nil
}

// rebuild makes the index again: leaves from the log, bundles from the blobs
// that verify as such. Of several bundles of one statement the last in the log
// counts: it was made because the ones before were of no use. It returns blobs
// that are not what their name says.
func (h *Home) rebuild(ctx context.Context, r *translog.Reader, size uint64) ([]translog.Problem, error) {
	var leaves []sqlstore.LeafRow
	err := r.Entries(ctx, size, func(i uint64, body []byte) error {
		d, err := translog.StatementOf(body)
		if err != nil {
			return err
		}
		leaves = append(leaves, sqlstore.LeafRow{Hash: rfc6962.DefaultHasher.HashLeaf(body), Index: i, Statement: d})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the log: %w", err)
	}
	var bad []translog.Problem
	found := map[hallmark.Digest]verify.Statement{}
	err = h.stores.blobs.Walk(ctx, func(d hallmark.Digest, size int64) error {
		if size > verify.MaxBundle {
			return nil
		}
		b, err := h.stores.blobs.Get(ctx, d)
		if hallmark.CodeOf(err) == hallmark.CodeEvidenceMalformed {
			bad = append(bad, translog.Problem{Code: hallmark.CodeEvidenceMalformed, Index: -1, Message: err.Error()})
			return nil
		}
		if err != nil {
			return err
		}
		if len(b) == 0 || b[0] != '{' || !strings.Contains(string(b[:min(len(b), 200)]), "application/vnd.dev.sigstore.bundle") {
			return nil
		}
		s, err := h.verifier.Verify(b)
		if err != nil {
			return nil //nolint:nilerr // not one of our bundles: the index only holds what verifies
		}
		if old, ok := found[s.Digest()]; !ok || s.LogIndex() > old.LogIndex() {
			found[s.Digest()] = s
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading blobs: %w", err)
	}
	var rows []sqlstore.Row
	for _, s := range found {
		rows = append(rows, rowOf(s.Statement(), sign.Bundle{Statement: s.Digest(), Digest: s.BundleDigest()}, s.Signer(), s.SignedAt()))
	}
	return bad, h.stores.index.Rebuild(ctx, leaves, rows)
}

// Link is one link of a chain of custody.
type Link struct {
	Type     string          `json:"type"`
	Link     string          `json:"link"`
	State    string          `json:"state"`
	Detail   string          `json:"detail"`
	Evidence hallmark.Digest `json:"evidence,omitempty"`
	Signer   string          `json:"signer,omitempty"`
	SignedAt time.Time       `json:"signedAt,omitzero"`
	LogIndex uint64          `json:"logIndex"`
}

// Chain is the chain of custody of a subject.
type Chain struct {
	Subject string
	Links   []Link
	Missing bool // a link that should be there is not
}

// Report writes conformance worked out from the evidence of a home, or without
// any when there is no home.
func Report(ctx context.Context, home, framework, format string, w io.Writer) error {
	f, err := conformance.ParseFramework(framework)
	if err != nil {
		return err
	}
	ev := conformance.Evidence{}
	if err := checkHome(home); err == nil {
		h, err := readHome(home)
		if err != nil {
			return err
		}
		defer h.Close()
		if ev, err = h.conformance(ctx); err != nil {
			return err
		}
	} else if hallmark.KindOf(err) != hallmark.KindNotFound {
		return err // a home that can't be read is not taken for none
	}
	rows := conformance.Evaluate(f, ev)
	switch format {
	case "text":
		return conformance.WriteText(w, f, rows)
	case "html":
		return conformance.WriteHTML(w, f, rows)
	case "json":
		return conformance.WriteJSON(w, rows)
	}
	return hallmark.Errorf(hallmark.KindUsage, "--format %q: want text, html or json", format)
}

// conformance gathers the verified statements of a home; the newest summary
// names what the latest verdict rests on. Those of wrapped commands don't count:
// nothing but the command was looked at.
func (h *Home) conformance(ctx context.Context) (conformance.Evidence, error) {
	ev := conformance.Evidence{Mode: h.verifier.Roots().Mode}
	rows, err := h.stores.index.Statements(ctx, "")
	if err != nil {
		return ev, err
	}
	inForce, err := h.signedPolicies(ctx)
	if err != nil {
		return ev, err
	}
	statements := map[hallmark.Digest]hallmark.Digest{} // bundle to statement
	var all summaries
	for _, r := range rows {
		b, err := h.stores.blobs.Get(ctx, r.Bundle)
		if err != nil {
			return ev, fmt.Errorf("reading evidence: %w", err)
		}
		s, err := h.verifier.Verify(b)
		if err != nil {
			return ev, fmt.Errorf("verifying evidence %s: %w", r.Bundle, err)
		}
		if s.PredicateType() == intoto.PredicatePolicy && !slices.ContainsFunc(s.Statement().Subject, func(d intoto.ResourceDescriptor) bool {
			return inForce[hallmark.Digest("sha256:"+d.Digest["sha256"])] != nil
		}) {
			continue // of a proposal that never had enough signatures: it proves nothing
		}
		_, inLog, err := h.stores.index.LeafOf(ctx, s.Digest())
		if err != nil {
			return ev, err
		}
		item, err := conformance.ItemOf(s, inLog)
		if err != nil {
			return ev, err
		}
		ev.Items = append(ev.Items, item)
		statements[r.Bundle] = s.Digest()
		if err := all.add(r.Bundle, s); err != nil {
			return ev, err
		}
	}
	newest := all.newest()
	ev.Summary = newest.digest
	for _, in := range newest.inputs {
		if d, ok := statements[hallmark.Digest("sha256:"+in.Digest["sha256"])]; ok {
			ev.Inputs = append(ev.Inputs, d)
		}
	}
	return ev, nil
}

// Finding is one thing that doctor looked at.
type Finding struct {
	Name   string
	OK     bool
	Needed bool
	Detail string
	Fix    string
}

// tryTracing records a sandbox that does nothing.
func tryTracing(ctx context.Context, box *sandbox.Sandbox, engine trace.Engine) (string, error) {
	if box == nil {
		return "", errors.New("there is no sandbox to trace")
	}
	dir, err := os.MkdirTemp("", "hallmark-doctor-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	rep, err := box.Run(ctx, sandbox.Spec{
		Argv: []string{"true"}, Env: []string{"PATH=" + sandbox.Path()}, Dir: "/", Trace: &sandbox.Trace{Engine: engine, Log: filepath.Join(dir, "log")},
	})
	switch {
	case err != nil:
		return "", err
	case !rep.Trace.Whole():
		return "", fmt.Errorf("the record of a program is not whole: %s", rep.Trace.Failure)
	}
	return fmt.Sprintf("%s: %d events of true, whole", rep.Trace.Engine, rep.Trace.Events), nil
}

// Doctor says what this machine lacks.
func Doctor(ctx context.Context, home string) []Finding {
	var out []Finding
	add := func(name string, needed bool, err error, detail, fix string) {
		f := Finding{Name: name, OK: err == nil, Needed: needed, Detail: detail, Fix: fix}
		if err != nil {
			f.Detail = err.Error()
		}
		out = append(out, f)
	}
	for _, p := range []struct{ name, fix string }{
		{"git", "apt-get install git"}, {"go", "install Go 1.26 to build and analyse Go projects"}, {"gcc", "apt-get install gcc libc6-dev"}, {"make", "apt-get install make"},
		{"node", "apt-get install nodejs, to build Node projects"}, {"npm", "apt-get install npm, to build Node projects"}, {"python3", "apt-get install python3, to build Python projects"},
		{"perl", "apt-get install perl, for hallmark drill"},
	} {
		path, err := sandbox.Find(p.name)
		add("program "+p.name, p.name == "git", err, path, p.fix)
	}
	box, err := sandbox.New(sandbox.Config{Clock: now})
	var rep sandbox.Report
	if err == nil {
		rep, err = box.Run(ctx, sandbox.Spec{Argv: []string{"true"}, Env: []string{"PATH=" + sandbox.Path()}, Dir: "/"})
	}
	add("namespaces", true, err, "a sandbox starts and ends", "allow user namespaces: sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns=0")
	for _, g := range rep.Guarantees {
		var gerr error
		if !g.Holds {
			gerr = errors.New("does not hold")
			if g.Detail != "" {
				gerr = errors.New(g.Detail)
			}
		}
		if g.Name == "workspace-overlay" {
			continue
		}
		add("guarantee "+g.Name, false, gerr, g.Detail, "")
	}
	for _, e := range []struct {
		name   string
		engine trace.Engine
		fix    string
	}{
		{"tracing", trace.Best, "let processes be traced: sysctl kernel.yama.ptrace_scope=1; no build starts without"},
		{"tracing by fanotify and BPF", trace.Kernel, "for less work in each build, run as root in the machine's own namespaces, with BTF and BPF"},
	} {
		detail, terr := tryTracing(ctx, box, e.engine)
		add(e.name, e.engine == trace.Best, terr, detail, e.fix)
	}
	tools, err := inventoryTools()
	approve := ""
	for _, t := range tools {
		approve += fmt.Sprintf(",%s=%s", t.Name, t.Digest)
	}
	add("tools of builds", false, err, fmt.Sprintf("%d tools; to allow no other: hallmark policy set build.tools=%s", len(tools), strings.TrimPrefix(approve, ",")), "")
	out = append(out, driverFindings(home)...)
	who, uerr := user.Current()
	if uerr == nil {
		add("user", false, nil, who.Username, "")
	}
	herr := checkHome(home)
	there := herr == nil
	if there { // one that can't be opened, or that waits for signatures, is not one that is missing
		var h *Home
		if h, herr = readHome(home); herr == nil {
			herr = h.Close()
		}
	}
	add("home", there, herr, home, hallmark.HintOf(herr))
	return out
}
