// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package hallmark

// Reason codes. docs/reasons.md explains each; a test keeps the two together.
const (
	// Source.
	CodeSourceUnsigned          Code = "SOURCE_COMMIT_UNSIGNED"
	CodeSourceSignatureInvalid  Code = "SOURCE_SIGNATURE_INVALID"
	CodeSourceSignatureFormat   Code = "SOURCE_SIGNATURE_UNSUPPORTED"
	CodeSourceSignerNotAllowed  Code = "SOURCE_SIGNER_NOT_ALLOWED"
	CodeSourceSignerNotAuthor   Code = "SOURCE_SIGNER_NOT_COMMITTER"
	CodeSourceHistoryIncomplete Code = "SOURCE_HISTORY_INCOMPLETE"
	CodeSourceTreeDirty         Code = "SOURCE_TREE_DIRTY"
	CodeSourceObjectInvalid     Code = "SOURCE_OBJECT_INVALID"
	CodeSourceRevisionUnknown   Code = "SOURCE_REVISION_UNKNOWN"

	// Pipeline file.
	CodePipelineInvalid      Code = "PIPELINE_INVALID"
	CodePipelineMissing      Code = "PIPELINE_MISSING"
	CodePipelineArtifactName Code = "PIPELINE_ARTIFACT_NAME"
	CodePipelineArtifact     Code = "PIPELINE_ARTIFACT_MISSING"

	// Dependencies.
	CodeDependencyUnavailable Code = "DEPENDENCY_UNAVAILABLE"
	CodeDependencyIntegrity   Code = "DEPENDENCY_INTEGRITY"
	CodeDependencyScript      Code = "DEPENDENCY_INSTALL_SCRIPT"

	// Scans.
	CodeSecretFound       Code = "SECRET_FOUND"
	CodeSASTFinding       Code = "SAST_FINDING"
	CodeSASTUncovered     Code = "SAST_LANGUAGE_UNCOVERED"
	CodeSASTLeftOut       Code = "SAST_FILE_LEFT_OUT"
	CodeSASTDriver        Code = "SAST_DRIVER_UNAVAILABLE"
	CodeSASTDriverDigest  Code = "SAST_DRIVER_DIGEST"
	CodeVulnerability     Code = "VULNERABILITY_FOUND"
	CodeScanDataMissing   Code = "SCAN_DATA_MISSING"
	CodeScanDataStale     Code = "SCAN_DATA_STALE"
	CodeScanStale         Code = "SCAN_STALE"
	CodeScanIncomplete    Code = "SCAN_INCOMPLETE"
	CodeScanCanary        Code = "SCAN_CANARY_MISSED"
	CodeSBOMIncomplete    Code = "SBOM_INCOMPLETE"
	CodeCheckNotRun       Code = "CHECK_NOT_RUN"
	CodeCheckFailed       Code = "CHECK_FAILED"
	CodeCheckError        Code = "CHECK_ERROR"
	CodeChecksNotRequired Code = "POLICY_NO_REQUIRED_CHECKS"

	// Build.
	CodeBuildStepFailed     Code = "BUILD_STEP_FAILED"
	CodeTestFailed          Code = "TEST_FAILED"
	CodeBuildEgress         Code = "BUILD_EGRESS_ATTEMPTED"
	CodeBuildLimit          Code = "BUILD_LIMIT_EXCEEDED"
	CodeBuildNotIsolated    Code = "BUILD_NOT_ISOLATED"
	CodeBuildPolicy         Code = "BUILD_POLICY_REFUSED"
	CodeBuildTool           Code = "BUILD_TOOL_NOT_APPROVED"
	CodeBuildImage          Code = "BUILD_IMAGE_NOT_APPROVED"
	CodeNetworkUnavailable  Code = "PIPELINE_NETWORK_UNAVAILABLE"
	CodeSandboxUnavailable  Code = "SANDBOX_UNAVAILABLE"
	CodeSourceChangedInside Code = "SOURCE_CHANGED_DURING_BUILD"

	// Images.
	CodeImageNotByDigest Code = "IMAGE_NOT_BY_DIGEST"
	CodeImageNotImported Code = "IMAGE_NOT_IMPORTED"
	CodeImageDigest      Code = "IMAGE_DIGEST_MISMATCH"
	CodeImageInvalid     Code = "IMAGE_INVALID"
	CodeImageHostile     Code = "IMAGE_LAYER_HOSTILE"
	CodeImageTooLarge    Code = "IMAGE_TOO_LARGE"
	CodeImageDockerfile  Code = "IMAGE_DOCKERFILE_UNSUPPORTED"

	// Evidence and verification.
	CodeEvidenceMissing       Code = "EVIDENCE_MISSING"
	CodeEvidenceMalformed     Code = "EVIDENCE_MALFORMED"
	CodeEvidenceTime          Code = "EVIDENCE_TIME_OUT_OF_RANGE"
	CodeNoEvidenceForArtifact Code = "ARTIFACT_WITHOUT_EVIDENCE"
	CodeSubjectMismatch       Code = "SUBJECT_MISMATCH"
	CodeRevisionMismatch      Code = "REVISION_MISMATCH"
	CodeSignatureInvalid      Code = "SIGNATURE_INVALID"
	CodeSignerUnknown         Code = "SIGNER_UNKNOWN"
	CodeSignerNotAuthorized   Code = "SIGNER_NOT_AUTHORIZED_FOR_PREDICATE"
	CodeBuilderNotTrusted     Code = "BUILDER_NOT_TRUSTED"
	CodeBuilderMismatch       Code = "BUILDER_MISMATCH"
	CodePredicateType         Code = "PREDICATE_TYPE_UNEXPECTED"
	CodePayloadType           Code = "PAYLOAD_TYPE_UNEXPECTED"
	CodeTimestampInvalid      Code = "TIMESTAMP_INVALID"
	CodeTimeInFuture          Code = "TIME_IN_FUTURE"
	CodeLogProofInvalid       Code = "LOG_PROOF_INVALID"
	CodeLogOriginUnknown      Code = "LOG_ORIGIN_UNKNOWN"
	CodeLogWitnessQuorum      Code = "LOG_WITNESS_QUORUM"
	CodeLogSplitView          Code = "LOG_SPLIT_VIEW"
	CodeLogForked             Code = "LOG_FORKED"
	CodeLogTruncated          Code = "LOG_TRUNCATED"
	CodeLogEntryAltered       Code = "LOG_ENTRY_ALTERED"
	CodeLogIndexDiffers       Code = "LOG_INDEX_DIFFERS"
	CodeTrustRootUnpinned     Code = "TRUST_ROOT_UNPINNED"
	CodePolicyUnsigned        Code = "POLICY_SIGNATURE_INVALID"
	CodePolicyRollback        Code = "POLICY_VERSION_TOO_OLD"
	CodePolicyUndefined       Code = "POLICY_UNDEFINED"
	CodePolicyMismatch        Code = "POLICY_MISMATCH"
	CodePolicyAlreadySigned   Code = "POLICY_ALREADY_SIGNED"
	CodePolicyNotPending      Code = "POLICY_NOTHING_PENDING"
	CodePolicyProposal        Code = "POLICY_PROPOSAL_INVALID"
	CodeGenesisUnsigned       Code = "GENESIS_UNSIGNED"
	CodeGenesisMismatch       Code = "GENESIS_MISMATCH"
	CodeVSANotPassed          Code = "VSA_NOT_PASSED"
	CodeVSAResource           Code = "VSA_RESOURCE_MISMATCH"
	CodeSourceRef             Code = "SOURCE_REF_UNEXPECTED"
	CodeVSALevel              Code = "VSA_LEVEL_TOO_LOW"
	CodeVerdictDiffers        Code = "VERDICT_DIFFERS"
	CodeExternalParameters    Code = "EXTERNAL_PARAMETERS_UNEXPECTED"

	// Prevention: why an attack had no effect where nothing had to be denied.
	// Drills report them; a denial never carries one.
	CodeSourceCopyPrivate     Code = "SOURCE_COPY_PRIVATE"
	CodeSourceObjectsRehashed Code = "SOURCE_OBJECTS_REHASHED"
	CodeSourceConfigUnasked   Code = "SOURCE_CONFIGURATION_UNASKED"
	CodeSandboxSourceReadOnly Code = "SANDBOX_SOURCE_READ_ONLY"
	CodeSandboxHostUnseen     Code = "SANDBOX_HOST_UNSEEN"
	CodeSandboxProcessUnseen  Code = "SANDBOX_PROCESSES_UNSEEN"
	CodeSandboxNetworkClosed  Code = "SANDBOX_NETWORK_CLOSED"
	CodeProvenanceOwnFacts    Code = "PROVENANCE_FROM_CONTROL_PLANE"
	CodeLogIndexRebuilt       Code = "LOG_INDEX_REBUILT"
)
