// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intoto

import (
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// RefTransition is what somebody asked of one reference and what the source gate
// answered (SLSA v1.2 Source track, source provenance). Its subjects are the new
// revision and the reference (SubjectOfRef), or for a denial what was refused
// (SubjectOfRefusal).
type RefTransition struct {
	Repository string             `json:"repository"` // URI
	Ref        string             `json:"ref"`
	Old        string             `json:"old"` // commit or tag object; zeros: none
	New        string             `json:"new"`
	Commit     string             `json:"commit,omitempty"` // that New, a tag object, leads to
	Effect     hallmark.Effect    `json:"effect"`
	Actor      hallmark.Principal `json:"actor"` // who was authenticated, whatever the commits say
	Grant      string             `json:"grant,omitempty"`
	On         time.Time          `json:"on"`
	Policy     hallmark.Digest    `json:"policy"`
	Rule       string             `json:"rule,omitempty"` // that protects the reference
	// Previous is the statement of the last transition of this reference that was
	// allowed; absent for the first.
	Previous    hallmark.Digest        `json:"previous,omitempty"`
	Commits     []RefCommit            `json:"commits"` // that the reference shows newly
	Checks      []hallmark.CheckRecord `json:"checks"`
	Approvals   []hallmark.Digest      `json:"approvals"` // statements of approvals it rests on
	Controls    []RefControl           `json:"controls"`
	Obligations []string               `json:"obligations"` // what has to exist because of it
	Reasons     []hallmark.Reason      `json:"reasons"`     // of a denial
	Void        bool                   `json:"void,omitempty"`
	Upstream    string                 `json:"upstream,omitempty"` // URL that it is forwarded to before the reference moves
}

// RefCommit is one commit that a reference shows newly.
type RefCommit struct {
	Commit    string              `json:"commit"`
	Author    string              `json:"author"`    // as it claims
	Committer string              `json:"committer"` // as it claims
	Signer    *hallmark.Principal `json:"signer,omitempty"`
}

// RefControl is a control that was enforced, without a lapse since a revision.
type RefControl struct {
	Name  string    `json:"name"`
	Start string    `json:"start"` // revision
	Since time.Time `json:"since"`
}

// SubjectOfRef names a reference as a subject: the digest is that of its
// repository's URI, a NUL byte and its name, so that its history can be found.
func SubjectOfRef(repository, ref string) ResourceDescriptor {
	sum := sha256.Sum256([]byte(repository + "\x00" + ref))
	return ResourceDescriptor{Name: ref, URI: "git+" + repository, Digest: map[string]string{"sha256": hex.EncodeToString(sum[:])}}
}

// SubjectOfRefusal names what was refused for a reference, apart from what
// happened to it.
func SubjectOfRefusal(repository, ref string) ResourceDescriptor {
	d := SubjectOfRef(repository, ref+"\x00refused")
	d.Name = ref
	return d
}

// AccessRecord is one use, change or refusal of access.
type AccessRecord struct {
	Action   string             `json:"action"` // such as repository.create or token.issue
	Actor    hallmark.Principal `json:"actor"`
	Resource string             `json:"resource"`
	Effect   hallmark.Effect    `json:"effect"`
	Grant    string             `json:"grant,omitempty"`
	On       time.Time          `json:"on"`
	Policy   hallmark.Digest    `json:"policy"`
	Details  map[string]string  `json:"details,omitempty"`
	Reasons  []hallmark.Reason  `json:"reasons,omitempty"`
}

// Actions on a change.
const (
	ReviewPropose = "propose"
	ReviewApprove = "approve"
	ReviewHold    = "hold" // a push from outside that waits
	ReviewRun     = "run"  // lets exactly this revision run, without secrets and network
)

// ChangeRefs is what a build of a change names as its reference: no branch and no
// tag, since nothing of it has landed.
const ChangeRefs = "refs/changes/"

// Guarantees of an environment that the platform itself gives.
const (
	GuaranteeFresh  = "environment-fresh" // nothing of an earlier build was there
	GuaranteeSigner = "signer-separate"   // who built can't reach what signs
)

// ChangeReview is what somebody said of a change: of one exact revision for one
// reference of one repository, and of no other (SLSA v1.2 Source track, L4).
type ChangeReview struct {
	Action     string             `json:"action"`
	Change     string             `json:"change"` // id
	Repository string             `json:"repository"`
	Target     string             `json:"target"`   // full reference
	Revision   string             `json:"revision"` // commit
	Base       string             `json:"base"`     // where the target was; zeros: nowhere
	Actor      hallmark.Principal `json:"actor"`
	Grant      string             `json:"grant,omitempty"`
	Title      string             `json:"title,omitempty"`
	From       string             `json:"from,omitempty"` // reference that it was proposed from
	Pack       hallmark.Digest    `json:"pack,omitempty"` // of a held push, kept as a blob
	On         time.Time          `json:"on"`
	Policy     hallmark.Digest    `json:"policy"`
}

// ChangeID names the change of one revision for one reference.
func ChangeID(repository, target, revision string) string {
	sum := sha256.Sum256([]byte(repository + "\x00" + target + "\x00" + revision))
	return "c-" + hex.EncodeToString(sum[:8])
}
