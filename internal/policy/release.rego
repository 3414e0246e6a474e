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
	r := {"statement": s.digest, "signer": s.signer, "type": s.predicateType, "record": s.check, "result": object.get(s, "result", ""), "times": s.times, "subjects": object.get(s, "subjects", [])}
}

bound(r) if {
	r.record.revision.commit == revision.commit
	r.record.revision.tree == revision.tree
	r.record.revision.repository == revision.repository
	concerns(r)
}

# A record is about what its statement has as subject, not about what it says of
# itself: the record of a build about its artifacts, every other about the commit.
concerns(r) if {
	some s in r.subjects
	s.digest.gitCommit == revision.commit
	not of_artifacts(r)
}

concerns(r) if {
	of_artifacts(r)
	r.record.check == "build"
	every a in input.subjects { named(r, a) }
}

# The record of the scan of images is about every image among the artifacts.
concerns(r) if {
	r.record.check == "image"
	count(input.images) > 0
	every d in input.images {
		some s in r.subjects
		s.digest.sha256 == d
	}
}

of_artifacts(r) if r.record.check == "image"

of_artifacts(r) if {
	r.record.check == "build"
	count(input.subjects) > 0
}

types := {
	"source": "https://hallmark-sc.github.io/predicates/source-provenance/v0.1",
	"secrets": "https://in-toto.io/attestation/test-result/v0.1",
	"sast": "https://in-toto.io/attestation/test-result/v0.1",
	"sbom": "https://in-toto.io/attestation/test-result/v0.1",
	"tests": "https://in-toto.io/attestation/test-result/v0.1",
	"image": "https://in-toto.io/attestation/test-result/v0.1",
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

# The nearest record, and the first field that keeps it from counting.
nearest(check) := {"nearest": near[0].statement, "field": differs(near[0], check)} if {
	near := [r | some r in records; r.record.check == check]
	count(near) > 0
} else := {}

differs(r, check) := "predicateType" if {
	r.type != types[check]
} else := "signer" if {
	r.signer != "observer"
} else := "revision.repository" if {
	r.record.revision.repository != revision.repository
} else := "revision.commit" if {
	r.record.revision.commit != revision.commit
} else := "revision.tree" if {
	r.record.revision.tree != revision.tree
} else := "subject"

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
	c.count != 0
	input.severities[c.severity] >= input.thresholds.severity
	input.confidences[c.confidence] >= input.thresholds.confidence
}

# A pass is whole, and nothing in its statement speaks against it.
reasons contains reason("SCAN_INCOMPLETE", check, sprintf("the check %s passed, but left out %d things", [check, count(e.record.coverage.missed)]), {"nearest": e.statement, "field": "coverage.missed"}) if {
	some check in input.required
	some e in evidence(check)
	e.record.outcome == "pass"
	count(e.record.coverage.missed) > 0
}

reasons contains reason("EVIDENCE_MALFORMED", check, sprintf("the record of %s says pass and gives reasons against it", [check]), {"nearest": e.statement, "field": "reasons"}) if {
	some check in input.required
	some e in evidence(check)
	e.record.outcome == "pass"
	count(object.get(e.record, "reasons", [])) > 0
}

reasons contains reason("EVIDENCE_MALFORMED", check, sprintf("the record of %s says pass, its test result does not", [check]), {"nearest": e.statement, "field": "result"}) if {
	some check in input.required
	some e in evidence(check)
	e.record.outcome == "pass"
	e.type == "https://in-toto.io/attestation/test-result/v0.1"
	e.result != "PASSED"
}

# Scans age; what was built and tested does not.
reasons contains reason("SCAN_STALE", check, sprintf("the check %s finished at %s, longer ago than scans.maxAge", [check, e.record.finishedOn]), {"nearest": e.statement, "field": "finishedOn", "fix": "hallmark run"}) if {
	some check in input.required
	check in {"secrets", "sast", "sbom", "sca", "image"}
	some e in evidence(check)
	input.now - e.times.checkFinished > input.scansMaxAge
}

# Advisories have an age. Rules, which a scan of images uses too, have none.
dated("sca", d) if d.name

dated("image", d) if startswith(d.name, "osv:")

reasons contains reason("SCAN_DATA_STALE", check, sprintf("the data %s was too old for this policy when it was used", [d.name]), {"nearest": e.statement, "field": "data.newest", "fix": "hallmark advisories sync SOURCE, then hallmark run"}) if {
	some check in {"sca", "image"}
	check in input.required
	some e in evidence(check)
	some d in e.times.data
	dated(check, d)
	d.newest > 0
	e.times.checkFinished - d.newest > input.advisoriesMaxAge
}

reasons contains reason("SCAN_DATA_STALE", check, sprintf("the data %s does not say how old it is", [d.name]), {"nearest": e.statement, "field": "data.newest"}) if {
	some check in {"sca", "image"}
	check in input.required
	some e in evidence(check)
	some d in e.times.data
	dated(check, d)
	d.newest == 0
}

# Data that claims to be of the future would never grow old.
reasons contains reason("TIME_IN_FUTURE", check, sprintf("the newest record of %s is of the future of the scan", [d.name]), {"nearest": e.statement, "field": "data.newest", "fix": "take the advisories from a source whose dates are true"}) if {
	some check in {"sca", "image"}
	check in input.required
	some e in evidence(check)
	some d in e.times.data
	dated(check, d)
	d.newest - e.times.checkFinished > day
}

reasons contains reason("TIME_IN_FUTURE", r.record.check, sprintf("the record of %s is of the future", [r.record.check]), {"nearest": r.statement, "field": "finishedOn"}) if {
	some r in records
	r.times.checkFinished - input.now > tolerance
}

reasons contains reason("TIME_IN_FUTURE", "", "a statement was signed in the future of this decision", {"nearest": s.digest, "field": "signedAt"}) if {
	some s in input.statements
	s.times.signed - input.now > tolerance
}

tolerance := 300000000000 # 5 minutes

day := 86400000000000

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

reasons contains reason("SIGNER_NOT_AUTHORIZED_FOR_PREDICATE", "provenance", sprintf("provenance was signed by %s", [p.signer]), {"nearest": p.digest, "field": "signer"}) if {
	some p in provenances
	not by_builder(p)
}

# Each kind of build has a signer and a build type of its own: what was only
# recorded can't pass for what was isolated.
pipeline_type := "https://hallmark-sc.github.io/build-types/pipeline/v1"

command_type := "https://hallmark-sc.github.io/build-types/command/v1"

wrapped(p) if p.builderId == "https://hallmark-sc.github.io/builders/wrap"

hosted(p) if p.builderId == "https://hallmark-sc.github.io/builders/server"

by_builder(p) if {
	p.signer == "builder"
	not wrapped(p)
	not hosted(p)
}

by_builder(p) if {
	p.signer == "server"
	hosted(p)
}

by_builder(p) if {
	p.signer == "wrapper"
	wrapped(p)
}

known_type(p) if {
	object.get(p, "buildType", "") == pipeline_type
	not wrapped(p)
}

known_type(p) if {
	object.get(p, "buildType", "") == command_type
	wrapped(p)
}

reasons contains reason("BUILDER_NOT_TRUSTED", "provenance", sprintf("builder %s is not in build.builders", [p.builderId]), {"nearest": p.digest, "field": "runDetails.builder.id"}) if {
	some p in provenances
	not p.builderId in input.builders
}

reasons contains reason("REVISION_MISMATCH", "provenance", "the provenance is of another revision", {"nearest": p.digest, "field": sprintf("buildDefinition.externalParameters.%s", [field])}) if {
	some p in provenances
	some field, want in {"revision": revision.commit, "repository": revision.repository}
	object.get(object.get(p, "external", {}), field, "") != want
}

reasons contains reason("EXTERNAL_PARAMETERS_UNEXPECTED", "provenance", "the provenance has a build type whose parameters this policy does not know", {"nearest": p.digest, "field": "buildDefinition.buildType"}) if {
	some p in provenances
	not known_type(p)
}

# What was seen of the build spans the time that the provenance names.
reasons contains reason("EVIDENCE_TIME_OUT_OF_RANGE", "build", "the record of the build is of another time than the provenance", {"nearest": e.statement, "field": "startedOn"}) if {
	some p in provenances
	some e in evidence("build")
	not within(e.times, p.times)
}

within(r, p) if {
	p.started > 0
	r.checkStarted <= p.started
	p.started <= p.finished
	p.finished <= r.checkFinished
}

# The machine that built has only approved tools, if the policy approves any.
reasons contains reason("BUILD_TOOL_NOT_APPROVED", "build", sprintf("the build machine had the tool %s, which build.tools does not approve", [tool]), {"nearest": s.digest, "field": "attributes"}) if {
	not input.anyTool
	some s in input.statements
	s.name == "environment"
	some tool in s.tools
	not tool in input.tools
}

# Steps ran in an approved image, and artifacts were made from one.
reasons contains reason("BUILD_IMAGE_NOT_APPROVED", "build", sprintf("the build was made in or from the image %s, which build.images does not approve", [image]), {"nearest": s.digest, "field": "materials"}) if {
	not input.anyImage
	some s in input.statements
	s.name in {"environment", "materials"}
	some image in s.images
	not image in input.approvedImages
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

reasons contains reason("EVIDENCE_MISSING", component, sprintf("there is no %s attestation of this build", [component]), object.union({"missing": sprintf("%s attestation", [component]), "fix": "hallmark run"}, similar(want))) if {
	count(input.subjects) > 0
	some component, want in components
	not present(want)
	not only_wrapped(component)
}

# A wrapped command has no inventory. Where the policy asks for the check sbom,
# its record is missing.
only_wrapped(component) if {
	component in {"spdx", "cyclonedx"}
	count(provenances) > 0
	every p in provenances { wrapped(p) }
}

similar(want) := {"nearest": near[0].digest, "field": other(near[0])} if {
	near := [s | some s in input.statements; s.predicateType == want.type; s.name == want.name]
	count(near) > 0
} else := {}

other(s) := "signer" if {
	s.signer != "observer"
} else := "subject"

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
