# The release policy: over verified statements only. Every reason has a stable
# code; what is undefined denies.
package hallmark.release

default allow := false

allow if count(reasons) == 0

decision := {"allow": allow, "reasons": reasons}

revision := input.revision

records contains r if {
	some s in input.statements
	s.check != null
	r := {"statement": s.digest, "signer": s.signer, "type": s.predicateType, "record": s.check, "at": s.signedAt}
}

bound(r) if {
	r.record.revision.commit == revision.commit
	r.record.revision.tree == revision.tree
	r.record.revision.repository == revision.repository
}

types := {
	"source": "https://hallmark-sc.github.io/predicates/source-provenance/v0.1",
	"secrets": "https://in-toto.io/attestation/test-result/v0.1",
	"sast": "https://in-toto.io/attestation/test-result/v0.1",
	"sbom": "https://in-toto.io/attestation/test-result/v0.1",
	"tests": "https://in-toto.io/attestation/test-result/v0.1",
	"sca": "https://in-toto.io/attestation/vulns/v0.2",
	"build": "https://in-toto.io/attestation/link/v0.3",
}

evidence(check) := {r |
	some r in records
	r.record.check == check
	r.type == types[check]
	r.signer == "observer"
	bound(r)
}

reason(code, check, message, more) := object.union({"code": code, "check": check, "message": message}, more)

# No required check, no decision.
reasons contains reason("POLICY_NO_REQUIRED_CHECKS", "", "the policy requires no check", {}) if count(input.required) == 0

reasons contains reason("EVIDENCE_MISSING", check, sprintf("there is no record of the check %s for this revision", [check]), object.union({"missing": sprintf("a signed record of %s for commit %s", [check, revision.commit]), "fix": "hallmark run"}, nearest(check))) if {
	some check in input.required
	count(evidence(check)) == 0
}

nearest(check) := {"nearest": r.statement, "field": "revision"} if {
	near := [x | some x in records; x.record.check == check]
	count(near) > 0
	r := near[0]
} else := {}

# Each record of a required check must be a pass: a later one hides no earlier.
reasons contains r if {
	some check in input.required
	some e in evidence(check)
	e.record.outcome != "pass"
	some own in object.get(e.record, "reasons", [])
	r := object.union(own, {"check": check})
}

codes := {"fail": "CHECK_FAILED", "error": "CHECK_ERROR", "skipped": "CHECK_NOT_RUN"}

reasons contains reason(object.get(codes, e.record.outcome, "CHECK_ERROR"), check, sprintf("the check %s ended with %s", [check, e.record.outcome]), {"nearest": e.statement, "field": "outcome"}) if {
	some check in input.required
	some e in evidence(check)
	e.record.outcome != "pass"
	count(object.get(e.record, "reasons", [])) == 0
}

# Counts are judged under the policy of now, which may be stricter than that of
# the scan.
reasons contains reason("CHECK_FAILED", check, sprintf("%d findings of severity %s and confidence %s count under this policy", [c.count, c.severity, c.confidence]), {"nearest": e.statement, "field": "counts"}) if {
	some check in input.required
	some e in evidence(check)
	e.record.outcome == "pass"
	some c in object.get(e.record, "counts", [])
	input.severities[c.severity] >= input.thresholds.severity
	input.confidences[c.confidence] >= input.thresholds.confidence
}

# Scans age; what was built and tested does not.
reasons contains reason("SCAN_STALE", check, sprintf("the check %s finished at %s, longer ago than scans.maxAge", [check, e.record.finishedOn]), {"nearest": e.statement, "field": "finishedOn", "fix": "hallmark run"}) if {
	some check in input.required
	check in {"secrets", "sast", "sbom", "sca"}
	some e in evidence(check)
	input.now - time.parse_rfc3339_ns(e.record.finishedOn) > input.scansMaxAge
}

reasons contains reason("SCAN_DATA_STALE", "sca", sprintf("the data %s was too old for this policy when it was used", [d.name]), {"nearest": e.statement, "field": "data.newest", "fix": "hallmark advisories sync SOURCE, then hallmark run"}) if {
	"sca" in input.required
	some e in evidence("sca")
	some d in object.get(e.record, "data", [])
	time.parse_rfc3339_ns(e.record.finishedOn) - time.parse_rfc3339_ns(d.newest) > input.advisoriesMaxAge
}

reasons contains reason("TIME_IN_FUTURE", r.record.check, sprintf("the record of %s is of the future", [r.record.check]), {"nearest": r.statement, "field": "finishedOn"}) if {
	some r in records
	time.parse_rfc3339_ns(r.record.finishedOn) - input.now > 300000000000
}

# Provenance: of these artifacts, from this revision, by a builder of the policy.
provenances := [s | some s in input.statements; s.predicateType == "https://slsa.dev/provenance/v1"]

reasons contains reason("ARTIFACT_WITHOUT_EVIDENCE", "provenance", "the build left no artifact to speak of", {}) if count(input.subjects) == 0

reasons contains reason("EVIDENCE_MISSING", "provenance", "there is no SLSA provenance", {"missing": "SLSA provenance of the artifacts", "fix": "let the build succeed: provenance is signed only for builds that the build policy allows"}) if count(provenances) == 0

reasons contains reason("SUBJECT_MISMATCH", "provenance", sprintf("the provenance does not name artifact %s", [a.name]), {"nearest": p.digest, "field": "subject"}) if {
	some a in input.subjects
	some p in provenances
	not named(p, a)
}

named(p, a) if {
	some s in p.subjects
	s.digest.sha256 == a.sha256
}

reasons contains reason("BUILDER_NOT_TRUSTED", "provenance", sprintf("builder %s is not in build.builders", [p.builderId]), {"nearest": p.digest, "field": "runDetails.builder.id"}) if {
	some p in provenances
	not p.builderId in input.builders
}

reasons contains reason("REVISION_MISMATCH", "provenance", "the provenance is of another revision", {"nearest": p.digest, "field": "buildDefinition.externalParameters"}) if {
	some p in provenances
	not right_revision(p)
}

right_revision(p) if {
	p.external.revision == revision.commit
	p.external.repository == revision.repository
	p.buildType == "https://hallmark-sc.github.io/build-types/pipeline/v1"
}

# What was seen of the build lies within the time that the provenance names.
reasons contains reason("EVIDENCE_TIME_OUT_OF_RANGE", "build", "the record of the build is of another time than the provenance", {"nearest": e.statement, "field": "startedOn"}) if {
	some p in provenances
	some e in evidence("build")
	not within(e.record, p)
}

within(r, p) if {
	time.parse_rfc3339_ns(r.startedOn) <= time.parse_rfc3339_ns(p.startedOn)
	time.parse_rfc3339_ns(p.finishedOn) <= time.parse_rfc3339_ns(r.finishedOn)
}

# The components of evidence of SP 800-204D §5.1.1, and the inventories.
components := {
	"environment": {"type": "https://in-toto.io/attestation/scai/v0.3", "name": "environment"},
	"process": {"type": "https://in-toto.io/attestation/link/v0.3", "name": "process"},
	"materials": {"type": "https://in-toto.io/attestation/link/v0.3", "name": "materials"},
	"artifacts": {"type": "https://in-toto.io/attestation/scai/v0.3", "name": "artifacts"},
	"spdx": {"type": "https://spdx.dev/Document", "name": ""},
	"cyclonedx": {"type": "https://cyclonedx.org/bom", "name": ""},
}

reasons contains reason("EVIDENCE_MISSING", component, sprintf("there is no %s attestation of this build", [component]), {"missing": sprintf("%s attestation", [component]), "fix": "hallmark run"}) if {
	count(input.subjects) > 0
	some component, want in components
	not present(want)
}

present(want) if {
	some s in input.statements
	s.predicateType == want.type
	s.name == want.name
	s.signer == "observer"
	about(s)
}

# Every artifact is a subject; an environment is of the revision.
about(s) if {
	every a in input.subjects { named(s, a) }
}

about(s) if {
	s.name == "environment"
	some sub in s.subjects
	sub.digest.gitCommit == revision.commit
	sub.digest.gitTree == revision.tree
}
