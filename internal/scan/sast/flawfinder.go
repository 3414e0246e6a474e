// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sast

import (
	"math"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// flawfinder looks for names of dangerous functions in C and C++. It is a lexical
// tool: it sees no types, no preprocessor and no data flow, so that it finds what
// a person would look at, not what is proven, and a macro can hide a name from it.
func flawfinder() Driver {
	return Driver{
		Name: "flawfinder", Tool: "Flawfinder", Program: "flawfinder", Install: "apt-get install flawfinder",
		// The script is what the pin names. Isolated mode without site packages keeps
		// everything out that is not the interpreter's own library: no variable, no
		// sitecustomize, no module beside the script.
		Interpreter: []string{"python3", "-I", "-S", "-B", "-X", "utf8"},
		Args:        []string{"--sarif", "--neverignore", "--minlevel=0", "--", ArgFiles},
		Languages:   []string{"C", "C++"},
		// Under this name it knows digit separators, which C has since 2023 too.
		Extension:   ".cpp",
		Exits:       []int{0},
		Wall:        10 * time.Minute,
		Memory:      2 << 30,
		canaryText:  flawfinderCanary,
		canaryRule:  "FF1014",
		canaryLine:  4,
		prepare:     cText,
		grade:       gradeFlawfinder,
		suppression: "--neverignore; the fault of the canary carries a comment to ignore it",
	}
}

// flawfinderCanary holds one fault, which asks not to be reported.
const flawfinderCanary = `#include <stdio.h>
void canary(void) {
	char b[8];
	gets(b); /* Flawfinder: ignore */ /* RATS: ignore */ /* ITS4: ignore */
}
`

// gradeFlawfinder reads the risk level 0 to 5, which is written as rank in fifths.
// A level says how bad the function is when it is misused; that it is misused is
// probable at most, and from level 4 on only: lower levels name what is common in
// correct programs.
func gradeFlawfinder(h hit) (hallmark.Severity, hallmark.Confidence, bool) {
	level := math.Round(h.Rank * 5)
	if math.Abs(h.Rank*5-level) > 0.01 {
		return 0, 0, false
	}
	switch level {
	case 0, 1:
		return hallmark.SeverityInfo, hallmark.ConfidenceLow, true
	case 2:
		return hallmark.SeverityLow, hallmark.ConfidenceLow, true
	case 3:
		return hallmark.SeverityMedium, hallmark.ConfidenceLow, true
	case 4:
		return hallmark.SeverityHigh, hallmark.ConfidenceMedium, true
	case 5:
		return hallmark.SeverityCritical, hallmark.ConfidenceMedium, true
	}
	return 0, 0, false
}
