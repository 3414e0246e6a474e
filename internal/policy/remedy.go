// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package policy

import "github.com/hallmark-sc/hallmark"

// Remedy returns what would mend a reason that names no fix of its own, or "".
func Remedy(code hallmark.Code) string {
	switch code {
	case hallmark.CodeScanDataMissing, hallmark.CodeScanDataStale:
		return "hallmark advisories sync SOURCE, then hallmark run"
	case hallmark.CodeScanStale, hallmark.CodeEvidenceMissing, hallmark.CodeRevisionMismatch, hallmark.CodeEvidenceTime:
		return "hallmark run"
	case hallmark.CodeSourceUnsigned:
		return "sign the commit: git commit --amend --no-edit -S"
	case hallmark.CodeSourceSignerNotAllowed:
		return "have an administrator allow the key: hallmark policy set --allowed-signers FILE"
	case hallmark.CodeCheckNotRun:
		return "mend what stopped it, which another reason names, then hallmark run"
	case hallmark.CodeSourceHistoryIncomplete:
		return "git fetch --unshallow"
	case hallmark.CodeSecretFound:
		return "revoke the credential, then remove it from the history"
	case hallmark.CodeVulnerability:
		return "upgrade the component to a version that the advisory calls fixed"
	case hallmark.CodeBuildEgress:
		return "declare what the step fetches as a dependency: a build has no network"
	case hallmark.CodeBuilderNotTrusted:
		return "build on a builder of the policy, or hallmark policy set build.builders=LIST"
	case hallmark.CodeBuildTool:
		return "hallmark doctor prints the inventory of this machine, hallmark image tools that of an image; approve it with hallmark policy set build.tools=LIST"
	case hallmark.CodeBuildImage:
		return "use an approved image, or hallmark policy set build.images=LIST"
	case hallmark.CodeChecksNotRequired:
		return "hallmark policy set checks.required=LIST"
	case hallmark.CodeTimeInFuture:
		return "set the clock of this machine right"
	case hallmark.CodeNoEvidenceForArtifact, hallmark.CodeSubjectMismatch:
		return "verify the artifact together with the evidence of its own build"
	}
	return ""
}
