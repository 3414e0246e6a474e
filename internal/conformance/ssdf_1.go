// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package conformance

// ssdfPrepare holds the tasks of PO and PS, abbreviated in our own words.
func ssdfPrepare() []Requirement {
	return []Requirement{
		{
			ID:            "PO.1.1",
			Group:         "Prepare the organization",
			Section:       "PO.1",
			Text:          "Identify and document the security requirements for the development infrastructure and processes, and maintain them.",
			NotApplicable: "rests with the organization: a pipeline leaves no evidence for it",
		},
		{
			ID:            "PO.1.2",
			Group:         "Prepare the organization",
			Section:       "PO.1",
			Text:          "Identify and document the security requirements that the software itself must meet, and maintain them.",
			NotApplicable: "rests with the organization: a pipeline leaves no evidence for it",
		},
		{
			ID:            "PO.1.3",
			Group:         "Prepare the organization",
			Section:       "PO.1",
			Text:          "Communicate requirements to third parties that supply components for reuse.",
			NotApplicable: "rests with the organization: a pipeline leaves no evidence for it",
		},
		{
			ID:      "PO.2.1",
			Group:   "Prepare the organization",
			Section: "PO.2",
			Text:    "Define roles and responsibilities for all parts of secure development, and review them.",
			Missing: "no roles yet",
		},
		{
			ID:            "PO.2.2",
			Group:         "Prepare the organization",
			Section:       "PO.2",
			Text:          "Give role-based training to everybody with such a responsibility, and review it.",
			NotApplicable: "rests with the organization: a pipeline leaves no evidence for it",
		},
		{
			ID:            "PO.2.3",
			Group:         "Prepare the organization",
			Section:       "PO.2",
			Text:          "Obtain the commitment of upper management and tell it to everybody concerned.",
			NotApplicable: "rests with the organization: a pipeline leaves no evidence for it",
		},
		{
			ID:      "PO.3.1",
			Group:   "Prepare the organization",
			Section: "PO.3",
			Text:    "Specify which tools or tool types each toolchain must or should include, and how they are integrated.",
			Missing: "the policy names required checks, not tools by digest",
		},
		{
			ID:      "PO.3.2",
			Group:   "Prepare the organization",
			Section: "PO.3",
			Text:    "Follow recommended security practices to deploy, operate and maintain tools and toolchains.",
			Missing: "toolchains are inventoried in the environment statement; their deployment and maintenance are not covered",
		},
		{
			ID:       "PO.3.3",
			Group:    "Prepare the organization",
			Section:  "PO.3",
			Text:     "Configure tools to generate artifacts of their support of secure development practices.",
			Rule:     "each stage signs what it did and found; statements are logged",
			Evidence: []Selector{source(), secrets(), sast(), sbom(), sca(), build(), tests(), environment(), provenance()},
			Tests:    []string{"script/run-allowed"},
		},
		{
			ID:       "PO.4.1",
			Group:    "Prepare the organization",
			Section:  "PO.4",
			Text:     "Define criteria for software security checks, and track them throughout the life cycle.",
			Rule:     "signed policy: required checks, severities, confidence, ages",
			Evidence: []Selector{policy(), decision()},
			Tests:    []string{"script/init", "script/run-allowed"},
			Limit:    "tracked for each revision that runs, not between runs",
		},
		{
			ID:       "PO.4.2",
			Group:    "Prepare the organization",
			Section:  "PO.4",
			Text:     "Implement processes or mechanisms that gather and safeguard the information needed for the criteria.",
			Rule:     "statements of every check, signed and in the append-only log",
			Evidence: []Selector{secrets(), sast(), sbom(), sca(), tests(), decision()},
			Tests:    []string{"script/run-allowed", "script/log-truncated"},
		},
		{
			ID:      "PO.5.1",
			Group:   "Prepare the organization",
			Section: "PO.5",
			Text:    "Separate and protect each environment involved in software development.",
			Missing: "build and scan sandboxes are separated from the host; development and distribution environments are not covered",
		},
		{
			ID:      "PO.5.2",
			Group:   "Prepare the organization",
			Section: "PO.5",
			Text:    "Secure and harden development endpoints by a risk-based approach.",
			Missing: "development endpoints are not covered",
		},
		{
			ID:      "PS.1.1",
			Group:   "Protect the software",
			Section: "PS.1",
			Text:    "Store all forms of code by least privilege, so that only authorized persons, tools and services have access.",
			Missing: "no source gate, no roles",
		},
		{
			ID:       "PS.2.1",
			Group:    "Protect the software",
			Section:  "PS.2",
			Text:     "Make information available to acquirers by which they can verify the integrity of a release.",
			Rule:     "provenance bundle, evidence and VERIFY.txt beside each artifact; verify and stock cosign check them offline",
			Evidence: []Selector{provenance(), passed()},
			Tests:    []string{"script/run-allowed", "script/verify-offline"},
		},
		{
			ID:      "PS.3.1",
			Group:   "Protect the software",
			Section: "PS.3",
			Text:    "Securely archive the files and supporting data to keep for each release.",
			Missing: "statements are kept; artifacts and sources of a release are not archived",
		},
		{
			ID:      "PS.3.2",
			Group:   "Protect the software",
			Section: "PS.3",
			Text:    "Collect, safeguard, maintain and share provenance data for all components of each release (such as an SBOM).",
			Missing: "provenance and SBOMs are written and signed for each run; they are not shared by a server or maintained after a release",
		},
	}
}
