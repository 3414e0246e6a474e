// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// fact is a verified statement as the rules see it.
type fact struct {
	Digest        hallmark.Digest             `json:"digest"`
	PredicateType string                      `json:"predicateType"`
	Signer        string                      `json:"signer"`
	SignedAt      time.Time                   `json:"signedAt"`
	Subjects      []intoto.ResourceDescriptor `json:"subjects"`
	Name          string                      `json:"name"`
	Result        string                      `json:"result,omitempty"` // of a test result
	Check         *hallmark.CheckRecord       `json:"check"`
	BuilderID     string                      `json:"builderId,omitempty"`
	BuildType     string                      `json:"buildType,omitempty"`
	External      *intoto.ExternalParameters  `json:"external,omitempty"`
	StartedOn     time.Time                   `json:"startedOn,omitzero"`
	FinishedOn    time.Time                   `json:"finishedOn,omitzero"`
	Tools         []string                    `json:"tools"`  // of an environment: NAME=HEX
	Images        []string                    `json:"images"` // of an environment or of materials: host, or sha256:HEX
	MaxLevel      string                      `json:"-"`
	Producer      string                      `json:"-"`     // of an environment: the builder
	Held          []string                    `json:"-"`     // guarantees of an environment
	Requesters    []string                    `json:"-"`     // of a build: every principal of who asked for it
	Image         string                      `json:"-"`     // it was built on
	Times         *factTimes                  `json:"times"` // set by withTimes, just before evaluation
}

// factTimes are the times of a fact in nanoseconds, the form that rules
// compare. Rules never parse a time: one that they can't hold would end the
// evaluation with an error instead of a denial.
type factTimes struct {
	Signed        int64  `json:"signed"`
	Started       int64  `json:"started"`
	Finished      int64  `json:"finished"`
	CheckStarted  int64  `json:"checkStarted"`
	CheckFinished int64  `json:"checkFinished"`
	Data          []aged `json:"data"`
}

// aged is one data source with the time of its newest record, 0 if it names none.
type aged struct {
	Name   string `json:"name"`
	Newest int64  `json:"newest"`
}

// nanos is t in nanoseconds since 1970, held within what a sum of two can carry.
// Times before 1970, the zero time among them, are 0 and so older than any limit.
func nanos(t time.Time) int64 {
	const latest = int64(1) << 62
	switch {
	case t.Unix() <= 0:
		return 0
	case t.Unix() >= latest/int64(time.Second):
		return latest
	}
	return t.UnixNano()
}

func (f fact) withTimes() fact {
	t := &factTimes{Signed: nanos(f.SignedAt), Started: nanos(f.StartedOn), Finished: nanos(f.FinishedOn), Data: []aged{}}
	if f.Check != nil {
		t.CheckStarted, t.CheckFinished = nanos(f.Check.StartedOn), nanos(f.Check.FinishedOn)
		for _, d := range f.Check.Data {
			t.Data = append(t.Data, aged{Name: d.Name, Newest: nanos(d.Newest)})
		}
	}
	f.Times = t
	return f
}

func factOf(s verify.Statement) (fact, error) {
	st := s.Statement()
	f := fact{
		Digest: s.Digest(), PredicateType: s.PredicateType(), Signer: s.Signer(), SignedAt: s.SignedAt().UTC(), Subjects: st.Subject,
		BuilderID: s.BuilderID(), MaxLevel: s.MaxLevel(),
	}
	var err error
	if f.Check, err = intoto.CheckOf(st); err != nil {
		return f, err
	}
	switch st.PredicateType {
	case intoto.PredicateTestResult:
		r, err := intoto.DecodePredicate[intoto.TestResult](st)
		if err != nil {
			return f, err
		}
		f.Result = r.Result
	case intoto.PredicateLink:
		l, err := intoto.DecodePredicate[intoto.Link](st)
		if err != nil {
			return f, err
		}
		f.Name = l.Name
		f.Images = imagesOf(l.Materials)
	case intoto.PredicateSCAI:
		l, err := intoto.DecodePredicate[intoto.SCAI](st)
		if err != nil {
			return f, err
		}
		f.Name = l.Name
		if l.Producer != nil {
			f.Producer = l.Producer.URI
		}
		f.Held = heldIn(l.Attributes)
		for _, a := range l.Attributes {
			if hostImage(a) {
				f.Images = append(f.Images, "host")
			}
			if (a.Attribute == intoto.AttributeTool || a.Attribute == intoto.AttributeToolApproved) && a.Target != nil {
				f.Tools = append(f.Tools, a.Target.Name+"="+a.Target.Digest["sha256"])
			}
		}
	case intoto.PredicateProvenance:
		p, err := intoto.ParseProvenance(st)
		if err != nil {
			return f, err
		}
		requester, err := p.Requester()
		if err != nil {
			return f, err
		}
		if f.Image, err = p.Image(); err != nil {
			return f, err
		}
		f.Requesters = requester.Principals
		f.BuildType, f.External = p.BuildDefinition.BuildType, &p.BuildDefinition.ExternalParameters
		f.StartedOn, f.FinishedOn = p.RunDetails.Metadata.StartedOn, p.RunDetails.Metadata.FinishedOn
	}
	return f, nil
}

// checkTypes says which predicate type carries the record of each check. The
// rules hold the same table; here it backs the invariants that no rule can
// take away.
func checkTypes() map[string]string {
	return map[string]string{
		"source": intoto.PredicateSource, "secrets": intoto.PredicateTestResult, "sast": intoto.PredicateTestResult, "sbom": intoto.PredicateTestResult,
		"tests": intoto.PredicateTestResult, "sca": intoto.PredicateVulns, "build": intoto.PredicateLink,
		"image": intoto.PredicateTestResult,
	}
}

// records reports whether f is the record of check for this revision. The
// subjects of its statement count, not only what the record says of itself.
func (f fact) records(check string, rev hallmark.Revision, subjects, images []hallmark.Artifact) bool {
	if f.Check == nil || f.Signer != "observer" || f.Check.Check != check || f.PredicateType != checkTypes()[check] || !sameContent(f.Check.Revision, rev) {
		return false
	}
	if check == "build" && len(subjects) > 0 {
		return f.names(subjects)
	}
	if check == "image" {
		return f.names(images) && len(images) > 0
	}
	return slices.ContainsFunc(f.Subjects, func(s intoto.ResourceDescriptor) bool { return s.Digest["gitCommit"] == rev.Commit })
}

// names reports whether every artifact is a subject of f.
func (f fact) names(artifacts []hallmark.Artifact) bool {
	named := map[string]bool{}
	for _, s := range f.Subjects {
		named[s.Digest["sha256"]] = true
	}
	for _, a := range artifacts {
		if a.Digest.Check() != nil || !named[a.Digest.Hex()] {
			return false
		}
	}
	return true
}

// sameContent compares all but the ref, which names a revision and is no part of it.
func sameContent(a, b hallmark.Revision) bool {
	return a.Commit != "" && a.Tree != "" && a.Commit == b.Commit && a.Tree == b.Tree && a.Repository == b.Repository
}

// byBuilder reports whether signer, build type and builder.id belong together: a
// wrapped command and a server have those of their own.
func (f fact) byBuilder() bool {
	if f.BuilderID == intoto.BuilderWrap {
		return f.Signer == "wrapper" && f.BuildType == intoto.BuildTypeCommand
	}
	if f.BuilderID == intoto.BuilderServer {
		return f.Signer == "server" && f.BuildType == intoto.BuildTypePipeline
	}
	return f.Signer == "builder" && f.BuildType == intoto.BuildTypePipeline
}

// backs reports whether f is provenance of every subject, from this revision, by
// one of the builders.
func (f fact) backs(subjects []hallmark.Artifact, rev hallmark.Revision, builders []string) bool {
	if f.PredicateType != intoto.PredicateProvenance || f.External == nil || !f.byBuilder() {
		return false
	}
	if f.External.Revision != rev.Commit || f.External.Repository != rev.Repository || !slices.Contains(builders, f.BuilderID) {
		return false
	}
	return len(subjects) > 0 && f.names(subjects)
}
